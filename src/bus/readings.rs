//! Final readings on their way to the one who stores them: one queue for all buses, bounded by the memory that they take.
//!
//! Nothing is dropped here: who brings a reading while the queue is full waits. Knows nothing of storing.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::model::Reading;

/// Memory that readings may take while they wait to be stored, all buses together: a thousand meters at a second each
/// through a disk that stalls for ten.
pub const READINGS_BYTES: usize = 32 * 1024 * 1024;

/// The end for those who read.
#[derive(Debug, Clone)]
pub struct Sender {
    queue: mpsc::UnboundedSender<Waiting>,
    room: Arc<Semaphore>,
}

/// The end for the one who stores.
#[derive(Debug)]
pub struct Receiver {
    queue: mpsc::UnboundedReceiver<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    reading: Reading,
    /// Given back when it is taken.
    _room: OwnedSemaphorePermit,
}

/// Room for one reading.
#[derive(Debug)]
pub struct Room(OwnedSemaphorePermit);

/// Nobody takes readings any more.
#[derive(Debug, thiserror::Error)]
#[error("nobody takes readings any more")]
pub struct Closed;

/// A queue of so many bytes.
pub fn readings(bytes: usize) -> (Sender, Receiver) {
    let (sender, queue) = mpsc::unbounded_channel();
    (Sender { queue: sender, room: Arc::new(Semaphore::new(bytes)) }, Receiver { queue })
}

impl Sender {
    /// Waits until there is room for this reading. Cancelling loses nothing.
    pub async fn room(&self, reading: &Reading) -> Result<Room, Closed> {
        let bytes = reading.memory().min(READINGS_BYTES);
        let waits = Arc::clone(&self.room).acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX));
        tokio::select! {
            biased;
            () = self.queue.closed() => Err(Closed),
            room = waits => room.map(Room).map_err(|_| Closed),
        }
    }

    /// Hands a reading over. What comes after the end is dropped: nobody could store it.
    pub fn send(&self, reading: Reading, room: Room) {
        let _ = self.queue.send(Waiting { reading, _room: room.0 });
    }
}

impl Receiver {
    /// The next reading; `None` when all senders are gone.
    pub async fn next(&mut self) -> Option<Reading> {
        self.queue.recv().await.map(|waiting| waiting.reading)
    }

    /// Adds those that wait, until there are `limit` in all.
    pub fn fill(&mut self, readings: &mut Vec<Reading>, limit: usize) {
        while readings.len() < limit
            && let Ok(waiting) = self.queue.try_recv()
        {
            readings.push(waiting.reading);
        }
    }
}
