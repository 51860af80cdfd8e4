//! One DL/T 645 read in bytes, and the data of frames that follow each other put together.

use std::time::Duration;

use super::{
    ABNORMAL, Address, FUNCTION, Frame, MAX_FOLLOW_UPS, MORE_FOLLOWS, READ_FOLLOWING, Read, encode, fault,
    find, first_frame, identifier_bytes, refusal,
};
use crate::protocol::{Found, Pace, Payload, Reply, Transaction};

/// A read of one meter.
#[derive(Debug)]
pub struct ReadTransaction {
    target: Address,
    read: Read,
    request: Vec<u8>,
    /// The data of the frames before.
    before: Vec<u8>,
}

impl ReadTransaction {
    /// The first request.
    pub fn new(target: Address, read: Read) -> ReadTransaction {
        ReadTransaction { target, read, request: encode(target, &read), before: Vec::new() }
    }

    /// The number of the frame that follows; 0 for the first one.
    fn number(&self) -> u8 {
        match self.read {
            Read::Data { follow_up, .. } => follow_up.unwrap_or(0),
            Read::Address => 0,
        }
    }

    /// All data up to this frame, with who sent it and whether more follows.
    fn data(&self, frame: &[u8]) -> Result<(Address, Vec<u8>, bool), Reply> {
        let unfit = |what: String| Err(Reply::Unfit(what));
        let Some((Frame { address, control, fields }, _)) = first_frame(frame) else {
            return unfit("the reply is no frame".into());
        };
        if control & ABNORMAL != 0 {
            return match fields.first() {
                Some(word) => Err(Reply::Refused(refusal(*word))),
                None => unfit("a refusal came without its error word".into()),
            };
        }
        let function = control & FUNCTION;
        let mut data = fields.get(identifier_bytes(function)..).map(<[u8]>::to_vec);
        if function == READ_FOLLOWING {
            data.as_mut().and_then(Vec::pop); // its number
        }
        match data {
            Some(data) => Ok((address, [&self.before[..], &data].concat(), control & MORE_FOLLOWS != 0)),
            None => unfit(format!("{} data bytes came, without an identifier", fields.len())),
        }
    }
}

impl Transaction for ReadTransaction {
    fn request(&self) -> &[u8] {
        &self.request
    }

    fn find(&self, received: &[u8]) -> Found {
        find(&self.request, received)
    }

    fn fault(&self, received: &[u8]) -> Option<String> {
        fault(&self.request, received)
    }

    fn decode(&self, frame: &[u8]) -> Reply {
        match (self.read, self.data(frame)) {
            (_, Err(reply)) => reply,
            // Some meters say who they are in the data alone, and speak as AA…AA.
            (Read::Address, Ok((_, bytes, _))) => match bytes.first_chunk() {
                Some(wire) if bytes.len() == wire.len() => {
                    Reply::Data(Payload::Data { from: Address::from_wire(*wire), bytes })
                }
                _ => Reply::Unfit(format!("an address of {} bytes came, 6 were expected", bytes.len())),
            },
            (Read::Data { identifier, .. }, Ok((_, _, true))) => {
                Reply::Unfit(format!("more than {MAX_FOLLOW_UPS} follow-up frames of {identifier}"))
            }
            (Read::Data { .. }, Ok((from, bytes, false))) => Reply::Data(Payload::Data { from, bytes }),
        }
    }

    fn follow_up(&self, frame: &[u8]) -> Option<Box<dyn Transaction>> {
        let (Read::Data { identifier, length, .. }, Ok((from, before, true))) = (self.read, self.data(frame))
        else {
            return None;
        };
        let number = self.number() + 1;
        if number > MAX_FOLLOW_UPS {
            return None;
        }
        // The rest is asked of whoever began, should the address have been a wildcard.
        let target = if from.is_wildcard() { self.target } else { from };
        let read = Read::Data { identifier, follow_up: Some(number), length };
        Some(Box::new(ReadTransaction { target, read, request: encode(target, &read), before }))
    }

    fn reply_chars(&self) -> u32 {
        self.read.reply_chars()
    }

    fn silence(&self, pace: &Pace) -> Duration {
        pace.silence()
    }
}
