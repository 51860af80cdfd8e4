//! Whether a connection is begun with a retained will. A broker that takes no retained messages says so with MQTT 5. With
//! 3.1.1 it cannot, and hangs up on the CONNECT: after some of those every second attempt goes without. No I/O, no clock.

/// Connections in a row that are closed before the CONNACK before retained messages are taken to be the cause: a broker
/// that is being started does so once or twice.
const ENDS_TO_DOUBT: u32 = 3;

/// What is known of a broker and retained messages.
#[derive(Debug, Default)]
pub(super) struct Retained {
    /// It says that it takes none.
    refused: bool,
    /// Connections in a row that were closed before the CONNACK.
    ends: u32,
    offered: bool,
}

impl Retained {
    /// Whether the will of the next connection is retained.
    pub(super) fn offer(&mut self) -> bool {
        let in_doubt = self.ends.checked_sub(ENDS_TO_DOUBT);
        self.offered = !self.refused && in_doubt.is_none_or(|ends| ends % 2 == 1);
        self.offered
    }

    /// The broker says that it takes none.
    pub(super) fn refused(&mut self) {
        self.refused = true;
    }

    /// A connection was closed before the CONNACK.
    pub(super) fn no_connack(&mut self) {
        self.ends = self.ends.saturating_add(1);
    }

    /// CONNACK, with what it `says` of retained messages. Whether they may be sent: not where only an unretained will was
    /// let in. The next connection begins with a retained one, for there may have been another reason.
    pub(super) fn connected(&mut self, says: bool) -> bool {
        let let_in_without = !self.offered && !self.refused;
        self.ends = if let_in_without { ENDS_TO_DOUBT - 1 } else { 0 };
        self.refused = !says;
        says && !let_in_without
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_hangs_up_on_a_retained_will_is_let_in_without_and_tried_again() {
        let mut retained = Retained::default();
        for offered in [true, true, true, false, true, false] {
            assert_eq!(retained.offer(), offered);
            retained.no_connack();
        }
        assert!(retained.offer() && retained.connected(true), "it was away");
        for offered in [true, true, true] {
            assert_eq!(retained.offer(), offered);
            retained.no_connack();
        }
        assert!(!retained.offer() && !retained.connected(true));
        assert!(retained.offer(), "it may have had another reason");
        retained.no_connack();
        assert!(!retained.offer() && !retained.connected(true), "one end is enough now");
    }

    #[test]
    fn a_broker_that_says_so_is_asked_no_more_until_it_says_otherwise() {
        let mut retained = Retained::default();
        assert!(retained.offer());
        retained.refused();
        assert!(!retained.offer() && !retained.connected(false));
        assert!(!retained.offer() && retained.connected(true), "it was changed");
        assert!(retained.offer());
    }
}
