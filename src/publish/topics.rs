//! The names of the topics. Knows nothing of what is said on them.

use crate::model::MeterId;

/// `{topic_prefix}/{site}/{gateway}/`: everything this gateway says or hears is below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// `topic_prefix`, without a slash at the end.
    pub prefix: String,
    /// Site id.
    pub site: String,
    /// Gateway id.
    pub gateway: String,
}

/// What a topic that we are subscribed to is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Down<'a> {
    /// Billing has committed.
    Receipt,
    /// Somebody asks for something.
    Command,
    /// Our own, from an earlier connection; or another gateway's with the same name.
    Status,
    /// A retained description of a meter, perhaps of one that is no longer configured.
    Inventory(&'a str),
}

impl Topics {
    fn below(&self, leaf: &str) -> String {
        format!("{}/{}/{}/{leaf}", self.prefix, self.site, self.gateway)
    }

    /// Up: ledger lines.
    pub fn records(&self) -> String {
        self.below("records")
    }

    /// Up, retained: the gateway itself; also the last will. Read back when a connection begins.
    pub fn status(&self) -> String {
        self.below("status")
    }

    /// Up, retained: one meter.
    pub fn inventory(&self, meter: &str) -> String {
        self.below(&format!("inventory/{meter}"))
    }

    /// The filter for every meter's description.
    pub fn inventories(&self) -> String {
        self.below("inventory/+")
    }

    /// Down: billing's word.
    pub fn receipt(&self) -> String {
        self.below("receipt")
    }

    /// Down: requests.
    pub fn command(&self) -> String {
        self.below("command")
    }

    /// Up: answers to commands.
    pub fn response(&self) -> String {
        self.below("response")
    }

    /// What a message on `topic` is for; `None` for a topic that is not ours.
    pub fn classify<'a>(&self, topic: &'a str) -> Option<Down<'a>> {
        let base = self.below("");
        match topic.strip_prefix(&base)? {
            "receipt" => Some(Down::Receipt),
            "command" => Some(Down::Command),
            "status" => Some(Down::Status),
            leaf => {
                let meter = leaf.strip_prefix("inventory/")?;
                meter.parse::<MeterId>().ok().map(|_| Down::Inventory(meter))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Topics {
        Topics { prefix: "metering/v1".into(), site: "riverside".into(), gateway: "gw-01".into() }
    }

    #[test]
    fn topics_are_those_of_the_contract() {
        let t = names();
        assert_eq!(t.records(), "metering/v1/riverside/gw-01/records");
        assert_eq!(t.status(), "metering/v1/riverside/gw-01/status");
        assert_eq!(t.inventory("E-0101"), "metering/v1/riverside/gw-01/inventory/E-0101");
        assert_eq!(t.receipt(), "metering/v1/riverside/gw-01/receipt");
        assert_eq!(t.command(), "metering/v1/riverside/gw-01/command");
        assert_eq!(t.response(), "metering/v1/riverside/gw-01/response");
    }

    #[test]
    fn a_topic_from_outside_is_recognised_or_passed_over() {
        let t = names();
        assert_eq!(t.classify(&t.receipt()), Some(Down::Receipt));
        assert_eq!(t.classify(&t.command()), Some(Down::Command));
        assert_eq!(t.classify(&t.status()), Some(Down::Status));
        assert_eq!(t.classify(&t.inventory("E-1")), Some(Down::Inventory("E-1")));
        for other in ["", "metering/v1/riverside/gw-02/receipt", "metering/v1/riverside/gw-01/inventory/a/b"]
        {
            assert_eq!(t.classify(other), None, "{other}");
        }
    }
}
