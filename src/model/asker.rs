//! Who asked for something to be done: what is known of them for certain, and the name that they give.
//!
//! Makes the fields of the record that says so. Finds nothing out by itself: the doors tell.

use serde_json::{Map, Value};

/// Bytes of a name that somebody gives: a person's or an account's.
const MAX_NAME_BYTES: usize = 64;
/// Bytes of any other word of the record: Linux has no longer path.
const MAX_WORD_BYTES: usize = 4096;

/// The way by which it was asked, and what that way vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// A command over MQTT: its id.
    Mqtt(String),
    /// The Unix socket: the user of the process, as the kernel says.
    Socket(User),
    /// A port: the peer's address.
    Http(String),
    /// The command line, where no daemon runs.
    CommandLine(User),
}

/// A user of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub uid: u32,
    /// Its name, if the machine's own list has it.
    pub name: Option<String>,
}

impl User {
    /// Looked up in the text of `/etc/passwd`.
    pub fn of(uid: u32, passwd: &str) -> User {
        let name = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, number) = (fields.next()?, fields.nth(1)?);
            (number.parse() == Ok(uid)).then(|| name.to_owned())
        });
        User { uid, name }
    }
}

/// Somebody who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker(Map<String, Value>);

impl Asker {
    /// `name` is what they call themselves; without one `by` is what the way vouches for.
    pub fn new(via: Via, name: Option<&str>) -> Result<Asker, String> {
        let mut fields = Map::new();
        let (way, known) = match via {
            Via::Mqtt(command) => {
                word("the command's id", &command, MAX_WORD_BYTES)?;
                fields.insert("command".into(), command.clone().into());
                ("mqtt", command)
            }
            Via::Http(address) => {
                fields.insert("address".into(), address.clone().into());
                ("http", address)
            }
            Via::Socket(user) => ("socket", user_fields(user, &mut fields)),
            Via::CommandLine(user) => ("command_line", user_fields(user, &mut fields)),
        };
        if let Some(name) = name {
            word("`by`", name, MAX_NAME_BYTES)?;
        }
        // Nobody vouches for a name that is given, but for one that is what the way knows anyway.
        if name.is_some_and(|name| name != known) {
            fields.insert("claimed".into(), true.into());
        }
        fields.insert("by".into(), name.map_or(known, str::to_owned).into());
        fields.insert("via".into(), way.into());
        Ok(Asker(fields))
    }

    /// `by`, `claimed` where that is only what they say, `via`, and what the way vouches for.
    pub fn fields(&self) -> Map<String, Value> {
        self.0.clone()
    }

    /// Who this is as far as it is vouched for, to be counted by: a user of the machine, an address, all of the broker. Whoever is
    /// on this machine can take any loopback address and any port, so these are one.
    pub fn actor(&self) -> String {
        let text = |name: &str| self.0.get(name).and_then(Value::as_str);
        if let Some(uid) = self.0.get("uid") {
            return format!("uid {uid}");
        }
        let Some((host, _port)) = text("address").and_then(|address| address.rsplit_once(':')) else {
            return text("via").unwrap_or_default().to_owned();
        };
        let host = host.trim_matches(['[', ']']).trim_start_matches("::ffff:");
        let on_this_machine = host == "::1" || host.starts_with("127.");
        if on_this_machine { "loopback".to_owned() } else { host.to_owned() }
    }

    /// The fields of a `user_action`.
    pub fn action(&self, action: &str, asked: Map<String, Value>) -> Map<String, Value> {
        let mut fields = self.fields();
        fields.extend(asked);
        fields.insert("action".into(), action.into());
        fields
    }
}

fn user_fields(user: User, fields: &mut Map<String, Value>) -> String {
    fields.insert("uid".into(), user.uid.into());
    if let Some(name) = &user.name {
        fields.insert("user".into(), name.clone().into());
    }
    user.name.unwrap_or_else(|| format!("uid {}", user.uid))
}

/// A word from outside that goes on record: not empty, not too long, nothing that a terminal would obey.
fn word(what: &str, text: &str, limit: usize) -> Result<(), String> {
    if text.is_empty() || text.len() > limit {
        return Err(format!("{what} has {} bytes, expected 1 to {limit}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("{what} has a control character: expected text"));
    }
    Ok(())
}

/// The same for a path.
pub fn path_word(what: &str, text: &str) -> Result<(), String> {
    word(what, text, MAX_WORD_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nmeter-gateway:x:990:990::/:/sbin/nologin\n";

    #[test]
    fn the_way_vouches_and_the_name_is_a_claim() {
        let ask = |via, name| Value::from(Asker::new(via, name).unwrap().fields());
        let user = |uid| Via::Socket(User::of(uid, PASSWD));
        assert_eq!(ask(user(0), None), json!({"by": "root", "via": "socket", "uid": 0, "user": "root"}));
        assert_eq!(
            ask(user(990), Some("王工")),
            json!({"by": "王工", "claimed": true, "via": "socket", "uid": 990, "user": "meter-gateway"})
        );
        assert_eq!(
            ask(user(0), Some("root")),
            json!({"by": "root", "via": "socket", "uid": 0, "user": "root"}),
            "what the kernel says is no claim"
        );
        assert_eq!(
            ask(Via::Http("127.0.0.1:4711".into()), Some("the owner")),
            json!({"by": "the owner", "claimed": true, "via": "http", "address": "127.0.0.1:4711"})
        );
        assert_eq!(ask(user(7), None), json!({"by": "uid 7", "via": "socket", "uid": 7}));
        assert_eq!(
            ask(Via::Mqtt("c-1".into()), Some("clerk")),
            json!({"by": "clerk", "claimed": true, "via": "mqtt", "command": "c-1"})
        );
        assert_eq!(
            ask(Via::Http("10.0.0.9:4711".into()), None),
            json!({"by": "10.0.0.9:4711", "via": "http", "address": "10.0.0.9:4711"})
        );
    }

    #[test]
    fn what_is_asked_cannot_pass_for_who_asks_nor_for_another_action() {
        let clerk = Asker::new(Via::Mqtt("c-1".into()), None).unwrap();
        let asked = Map::from_iter([("from_seq".into(), 3.into()), ("action".into(), "none".into())]);
        let fields = clerk.action("replay", asked);
        assert_eq!((&fields["action"], &fields["from_seq"]), (&json!("replay"), &json!(3)));
    }

    #[test]
    fn who_asks_is_counted_by_what_is_vouched_for() {
        let actor = |via, name| Asker::new(via, name).unwrap().actor();
        assert_eq!(actor(Via::Mqtt("c-1".into()), None), actor(Via::Mqtt("c-2".into()), Some("clerk")));
        assert_eq!(actor(Via::Socket(User::of(7, PASSWD)), Some("root")), "uid 7");
        let http = |address: &str| actor(Via::Http(address.into()), Some("clerk"));
        assert_eq!(http("127.0.0.1:4711"), http("127.9.9.9:1"));
        assert_eq!(http("127.0.0.1:4711"), http("[::1]:4711"));
        assert_eq!(http("127.0.0.1:4711"), http("[::ffff:127.0.0.1]:4711"));
        assert_eq!(http("10.0.0.9:4711"), http("10.0.0.9:4712"));
        assert_ne!(http("10.0.0.9:4711"), http("10.0.0.8:4711"));
    }

    #[test]
    fn names_are_bounded_and_plain() {
        let ask = |name: &str| Asker::new(Via::Mqtt("c".into()), Some(name));
        assert!(ask(&"x".repeat(64)).is_ok());
        for bad in ["", "a\nb", "\u{1b}[2J", "a\u{85}b", &"x".repeat(65)] {
            assert!(ask(bad).is_err(), "{bad:?}");
        }
        assert!(Asker::new(Via::Mqtt("a\u{7}".into()), None).is_err());
    }
}
