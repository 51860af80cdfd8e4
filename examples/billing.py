#!/usr/bin/env python3
"""A billing system's end of the line: takes the records of all gateways at a broker into a SQLite file, each once, in order, proved.

    python3 billing.py --broker broker.example --user billing --password-file FILE billing.db

Needs the standard library and paho-mqtt 1.6 or newer (Debian: python3-paho-mqtt). Written from docs/mqtt.md. It may be killed at any
moment: what it has confirmed is on its disk, and what it lacks it asks for. Ctrl-C ends it. Exit 1: a record is not what it should be.

Tables: `record` (every record as it was hashed), `value` (what readings showed, ready to be billed from), `rejected` (records that
could not be used), `ledger` (how far each ledger has come).
"""

import argparse
import hashlib
import json
import queue
import sqlite3
import sys
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

ZEROS = "0" * 64  # `prev` of the first record
ASK_EVERY = 5  # seconds until a gap is asked for again
BATCH = 50  # messages in one transaction
SESSION_SECONDS = 7 * 24 * 3600  # how long the broker shall keep what comes while this program is away

SCHEMA = """
create table if not exists ledger (id text primary key, gateway text, last integer, head text);
create table if not exists record (ledger text, seq integer, type text, line text, primary key (ledger, seq));
create table if not exists value (ledger text, seq integer, meter text, scheduled_at text, taken_at text, verdict text,
    point text, value text, unit text, multiplier text, primary key (ledger, seq, point));
create table if not exists rejected (ledger text, seq integer, reason text, primary key (ledger, seq));
"""


class Fault(Exception):
    """A record is not what it should be: a person has to look."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def no_floats(text):
    raise ValueError(f"{text} is not an exact number")


def canonical(record):
    """RFC 8785 for what a record holds: strings, integers, true, false and null; names in ASCII."""
    return json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def prove(record):
    """The record as it was hashed."""
    unhashed = {name: value for name, value in record.items() if name != "hash"}
    if hashlib.sha256(canonical(unhashed).encode()).hexdigest() != record["hash"]:
        raise Fault(f"record {record['seq']}: its content does not have the hash that it says it has")
    return canonical(record)


class Billing:
    """What is stored. Knows no network."""

    def __init__(self, path, meters, lost):
        self.db = sqlite3.connect(path)
        self.db.executescript("pragma journal_mode = wal; pragma synchronous = full;" + SCHEMA)
        self.meters = meters  # those with a contract; None: all
        self.lost = lost  # (ledger, first, last): records that a person has given up
        self.gaps = {}  # by ledger that lacks records: when to ask for them
        self.named = set()  # rejected records that a receipt has named since this program started

    def ledger(self, id, gateway):
        """The last record of this ledger that is stored, and its hash. One that was never seen begins at 1."""
        if self.db.execute("insert or ignore into ledger values (?, ?, 0, ?)", (id, gateway, ZEROS)).rowcount:
            say(f"{gateway}: ledger {id} begins here")
        return self.db.execute("select last, head from ledger where id = ?", (id,)).fetchone()

    def status(self, gateway, message):
        """How far the gateway is. What it does not keep any more cannot be asked for."""
        id, first = message["ledger"], message.get("store", {}).get("first_seq", 1)
        last, _ = self.ledger(id, gateway)
        if last + 1 < first and last > 0:
            say(f"{gateway}: records {last + 1} to {first - 1} are no longer kept there: take them from a backup")
        elif last + 1 < first:
            say(f"{gateway}: begins with record {first}: what was before is no longer kept there")
            self.db.execute("update ledger set last = ?, head = null where id = ?", (first - 1, id))
        elif last < message["acknowledged_seq"]:
            self.gaps.setdefault(id, time.monotonic() + ASK_EVERY)  # unless they are on their way

    def records(self, gateway, message):
        """Takes what is next, passes over what is there already, and notes that something is missing."""
        id = message["ledger"]
        last, head = self.ledger(id, gateway)
        for record in message["records"]:
            seq, line = record["seq"], prove(record)
            if (id, last + 1, seq - 1) in self.lost:
                last, head = seq - 1, None  # what it follows is not known
            if seq <= last:
                self.again(id, record, line)
            elif seq > last + 1:
                self.gaps.setdefault(id, time.monotonic())
                break  # not taken: it comes again behind what is missing
            elif head is not None and record["prev"] != head:
                raise Fault(f"record {seq} does not follow record {last}: the chain is broken")
            else:
                self.db.execute("insert into record values (?, ?, ?, ?)", (id, seq, record["type"], line))
                self.db.execute("update ledger set last = ?, head = ? where id = ?", (seq, record["hash"], id))
                last, head = seq, record["hash"]
                self.gaps.pop(id, None)
                self.use(id, record)

    def again(self, id, record, line):
        seq = record["seq"]
        stored = self.db.execute("select line from record where ledger = ? and seq = ?", (id, seq)).fetchone()
        if stored and stored[0] != line:
            raise Fault(f"record {seq} came twice, and differs")
        if self.db.execute("delete from rejected where ledger = ? and seq = ?", (id, seq)).rowcount:
            self.named.discard((id, seq))
            self.use(id, record)  # a person had it sent again: perhaps it can be used now

    def use(self, id, record):
        """What billing does with a record: here the values of readings become rows. Other types are only kept."""
        if record["type"] != "reading":
            return
        try:
            if self.meters is not None and record["meter"] not in self.meters:
                raise ValueError(f"meter {record['meter']} has no contract")
            reading = [record[name] for name in ("meter", "scheduled_at", "taken_at", "verdict")]
            rows = [(id, record["seq"], *reading, point, value["value"], value["unit"], value.get("multiplier", "1"))
                    for point, value in record["values"].items()]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self.db.execute("insert or replace into rejected values (?, ?, ?)", (id, record["seq"], str(error)))
        else:
            self.db.executemany("insert or replace into value values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def receipt(self, id):
        """How far this ledger is stored, and from where it lacks records. Call it after a commit only."""
        last = self.db.execute("select last from ledger where id = ?", (id,)).fetchone()[0]
        rows = self.db.execute("select seq, reason from rejected where ledger = ? order by seq", (id,)).fetchall()
        new = [(seq, reason) for seq, reason in rows if (id, seq) not in self.named][:200]
        self.named.update((id, seq) for seq, _ in new)
        receipt = {"ledger": id, "confirmed_seq": last, "rejected": [{"seq": s, "reason": r} for s, r in new]}
        if self.due(id):
            self.gaps[id] = time.monotonic() + ASK_EVERY
            receipt["resend_from"] = last + 1
        return receipt

    def due(self, id):
        return self.gaps.get(id, float("inf")) <= time.monotonic()


def connect(arguments, inbox):
    """A connection that comes back by itself; what arrives goes into `inbox`."""
    v5 = arguments.mqtt == "5"
    options = {"client_id": arguments.client_id, "protocol": mqtt.MQTTv5 if v5 else mqtt.MQTTv311}
    if not v5:
        options["clean_session"] = False
    if hasattr(mqtt, "CallbackAPIVersion"):  # paho-mqtt 2
        options["callback_api_version"] = mqtt.CallbackAPIVersion.VERSION2
    connection = mqtt.Client(**options)
    if arguments.user:
        with open(arguments.password_file, encoding="utf-8") as file:
            connection.username_pw_set(arguments.user, file.read().strip())
    if arguments.ca_file:
        connection.tls_set(arguments.ca_file)

    def on_connect(connection, _data, _flags, reason, _properties=None):
        say(f"broker: connected ({reason})" if reason == 0 else f"broker: refuses the connection ({reason})")
        connection.subscribe([(f"{arguments.topic}/records", 1), (f"{arguments.topic}/status", 1)])

    connection.on_connect = on_connect
    connection.on_disconnect = lambda *_: say("broker: connection lost; it is tried again")
    # A full inbox holds up the network, and so the broker. paho acknowledges a message before it is stored here; what is lost
    # between the two is a gap, and is asked for.
    connection.on_message = lambda _client, _data, message: inbox.put((message.topic, message.payload))
    extra = {}
    if v5:
        extra = {"clean_start": False, "properties": Properties(PacketTypes.CONNECT)}
        extra["properties"].SessionExpiryInterval = SESSION_SECONDS
    connection.reconnect_delay_set(1, 30)
    connection.connect_async(arguments.broker, arguments.port, keepalive=30, **extra)
    connection.loop_start()
    return connection


def collect(inbox):
    """What has arrived, at most a batch; waits a second for the first."""
    messages = []
    try:
        messages.append(inbox.get(timeout=1))
        while len(messages) < BATCH:
            messages.append(inbox.get_nowait())
    except queue.Empty:
        pass
    return messages


def work(billing, connection, inbox):
    """For ever: takes messages, commits, and only then says so."""
    gateways = {}  # by ledger: the topics of its gateway
    while True:
        heard = set()
        for topic, payload in collect(inbox):
            gateway, leaf = topic.rsplit("/", 1)
            try:
                message = json.loads(payload, parse_float=no_floats)
                (billing.records if leaf == "records" else billing.status)(gateway, message)
            except (KeyError, TypeError, ValueError) as error:
                say(f"{topic}: a message is passed over, it is not what it should be: {error!r}")
                continue
            gateways[message["ledger"]] = gateway
            heard.add(message["ledger"])
        billing.db.commit()  # first the disk, then the receipt
        for ledger in heard | set(filter(billing.due, gateways)):
            connection.publish(f"{gateways[ledger]}/receipt", json.dumps(billing.receipt(ledger)), qos=1)


def main():
    parser = argparse.ArgumentParser(
        description="Takes the records of all gateways at a broker into a SQLite file: each once, in order, proved.",
        epilog="May be killed at any moment. What it confirms is on its disk; what it lacks it asks for. See docs/mqtt.md.",
    )
    parser.add_argument("--broker", default="127.0.0.1", metavar="HOST")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--mqtt", choices=["5", "3.1.1"], default="5", help="version of the protocol (default 5)")
    parser.add_argument("--topic", default="metering/v1/+/+", help="topics of the gateways: PREFIX/SITE/GATEWAY (default %(default)s)")
    parser.add_argument("--client-id", default="billing", help="the same at each start, so that the broker keeps what comes meanwhile")
    parser.add_argument("--user", metavar="NAME")
    parser.add_argument("--password-file", metavar="FILE", help="the password alone, on one line")
    parser.add_argument("--ca-file", metavar="FILE", help="certificates to trust: connects with TLS")
    parser.add_argument("--meters", metavar="FILE", help="ids of the meters with a contract, one a line; others are rejected")
    parser.add_argument("--lost", metavar="LEDGER:FROM-TO", action="append", default=[],
                        help="go on without these records: the gateway cannot read them any more (record_damaged) or does not keep them")
    parser.add_argument("database", metavar="FILE.db")
    arguments = parser.parse_args()
    if arguments.user and not arguments.password_file:
        parser.error("--user needs --password-file")
    meters = None
    if arguments.meters:
        with open(arguments.meters, encoding="utf-8") as file:
            meters = set(file.read().split())
    try:
        ranges = [(ledger, *map(int, part.split("-"))) for ledger, part in (text.split(":") for text in arguments.lost)]
    except ValueError:
        parser.error("--lost: expected LEDGER:FROM-TO")
    billing = Billing(arguments.database, meters, ranges)
    inbox = queue.Queue(maxsize=2 * BATCH)
    connection = connect(arguments, inbox)
    try:
        work(billing, connection, inbox)
    except KeyboardInterrupt:
        return 0
    except Fault as fault:
        say(f"fault: {fault}\n  nothing of it is stored, and nothing is confirmed any more: somebody has to look")
        return 1
    finally:
        connection.disconnect()


if __name__ == "__main__":
    sys.exit(main())
