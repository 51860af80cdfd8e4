//! Final readings on their way to the one who stores them: one queue for all buses, bounded by the memory that they take.
//!
//! Nothing is dropped here: who brings a reading while the queue is full waits. Knows nothing of storing.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::model::Reading;

/// Memory that readings may take while they wait to be stored, all buses together: a thousand meters at a second each
/// through a disk that stalls for ten.
pub const READINGS_BYTES: usize = 32 * 1024 * 1024;
/// The same for readings without a slot (`interval_secs = 0`): no slot is lost while such a meter waits, and what would gather
/// here is only older when it is stored. A thousand of a big meter.
pub const UNPACED_BYTES: usize = 4 * 1024 * 1024;

/// The end for those who read.
#[derive(Debug, Clone)]
pub struct Sender {
    queue: mpsc::UnboundedSender<Waiting>,
    room: Arc<Semaphore>,
    unpaced: Arc<Semaphore>,
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
    _room: Room,
}

/// Room for one reading.
#[derive(Debug)]
pub struct Room {
    _of_all: OwnedSemaphorePermit,
    _unpaced: Option<OwnedSemaphorePermit>,
}

/// Nobody takes readings any more.
#[derive(Debug, thiserror::Error)]
#[error("nobody takes readings any more")]
pub struct Closed;

/// A queue of [`READINGS_BYTES`].
pub fn readings() -> (Sender, Receiver) {
    let (sender, queue) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(READINGS_BYTES));
    let unpaced = Arc::new(Semaphore::new(UNPACED_BYTES));
    (Sender { queue: sender, room, unpaced }, Receiver { queue })
}

impl Sender {
    /// Waits until there is room for this reading; `paced`: it has a slot, and the next one comes. Cancelling loses nothing.
    pub async fn room(&self, reading: &Reading, paced: bool) -> Result<Room, Closed> {
        let bytes = u32::try_from(reading.memory().min(UNPACED_BYTES)).unwrap_or(u32::MAX);
        let waits = async {
            let unpaced =
                if paced { None } else { Some(Arc::clone(&self.unpaced).acquire_many_owned(bytes).await?) };
            let of_all = Arc::clone(&self.room).acquire_many_owned(bytes).await?;
            Ok::<Room, AcquireError>(Room { _of_all: of_all, _unpaced: unpaced })
        };
        tokio::select! {
            biased;
            () = self.queue.closed() => Err(Closed),
            room = waits => room.map_err(|_| Closed),
        }
    }

    /// Hands a reading over. What comes after the end is dropped: nobody could store it.
    pub fn send(&self, reading: Reading, room: Room) {
        let _ = self.queue.send(Waiting { reading, _room: room });
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
