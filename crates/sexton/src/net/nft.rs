//! The daemon's own nft table, spoken to the kernel directly (`nfnetlink`): no other table is ever changed.
//!
//! ```text
//! table inet sexton {
//!   comment "forwarding of eth0 was off"        what to put back, kept where a crash does not lose it
//!   set slots { type ifname . ipv4_addr }       one element a slot, whose comment names it
//!   chain prerouting   iifgroup G: not IPv4, or not from (link . address) in @slots: drop
//!   chain forward      iifgroup G: not to the uplink: drop;   oifgroup G: no answer to a slot: drop
//!   chain postrouting  from the subnet to the uplink: masquerade
//! }
//! ```
//!
//! All host ends are in one group of links, so the rules are as many for one slot as for ten thousand, and what a slot
//! adds and takes is one element of a hash.

use std::collections::BTreeSet;

use sexton_sys::Errno;

use super::message::{Attributes, Incoming, Message, NLM_F_APPEND, NLM_F_CREATE, text_of};
use super::scheme::{Scheme, Slot, is_table};
use super::socket::{Netlink, Refused};

const NEW_TABLE: u16 = of(0);
const GET_TABLE: u16 = of(1);
const DELETE_TABLE: u16 = of(2);
const NEW_CHAIN: u16 = of(3);
const GET_CHAIN: u16 = of(4);
const DELETE_CHAIN: u16 = of(5);
const NEW_RULE: u16 = of(6);
const GET_RULE: u16 = of(7);
const DELETE_RULE: u16 = of(8);
const NEW_SET: u16 = of(9);
const NEW_ELEMENT: u16 = of(12);
const GET_ELEMENT: u16 = of(13);
const DELETE_ELEMENT: u16 = of(14);
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// `struct nfgenmsg` of what belongs to the family `inet`, and of a batch (whose number is nf_tables's).
const INET: [u8; 4] = [1, 0, 0, 0];
const BATCH: [u8; 4] = [0, 0, 0, 10];
const HEAD: usize = 4;

/// In most messages the table's name comes first, then the name of the chain, or of the set.
const TABLE: u16 = 1;
const PART: u16 = 2;
const TABLE_FLAGS: u16 = 2;
const TABLE_USERDATA: u16 = 6;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_USERDATA: u16 = 6;
const VALUE: u16 = 1;

/// The set's name.
const SLOTS: &str = "slots";
/// What the rule that masquerades says between the subnet and the uplink.
const APPEARS_AS: &str = " appears as ";
/// BOUND: elements in one transaction, so that it fits the socket's send buffer on every host.
const ELEMENTS_AT_ONCE: usize = 512;

/// A message of nf_tables.
const fn of(message: u16) -> u16 {
    10 << 8 | message
}

/// The key of a slot's element: link and address.
pub type Key = [u8; 20];

/// Whether the table has all that it is to have, save the slots' own elements; and what was noted in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// There is none.
    Missing,
    /// Some of it is missing, or made for another configuration.
    Damaged,
    /// All of it.
    Whole,
}

/// What is noted in the table of that name; `None` where there is no table, or no note.
pub fn note(netlink: &mut Netlink, table: &str) -> Result<Option<String>, Refused> {
    let mut note = None;
    let message = Message::new(GET_TABLE, 0, &INET).text(TABLE, table);
    let told = netlink.look(message, |incoming| {
        note = incoming.attributes(HEAD).find(TABLE_USERDATA).and_then(comment_of);
    });
    absent_is(told, ()).map(|()| note)
}

/// Every table of a daemon of ours, and what is noted in it.
pub fn notes(netlink: &mut Netlink) -> Result<Vec<(String, Option<String>)>, Refused> {
    let request = || Message::new(GET_TABLE, 0, &INET);
    netlink.dump(request, |incoming| {
        let attributes = incoming.attributes(HEAD);
        let name = attributes.find(TABLE).map(text_of).filter(|name| is_table(name))?;
        Some((name, attributes.find(TABLE_USERDATA).and_then(comment_of)))
    })
}

/// The tables of daemons of ours whose slots appear as `uplink`.
pub fn users(netlink: &mut Netlink, uplink: &str) -> Result<BTreeSet<String>, Refused> {
    let request = || Message::new(GET_RULE, 0, &INET);
    let tables = netlink.dump(request, |incoming| {
        let attributes = incoming.attributes(HEAD);
        let comment = attributes.find(RULE_USERDATA).and_then(comment_of)?;
        let is_masquerade = comment.strip_suffix(uplink).is_some_and(|rest| rest.ends_with(APPEARS_AS));
        attributes.find(TABLE).map(text_of).filter(|name| is_masquerade && is_table(name))
    })?;
    Ok(tables.into_iter().collect())
}

/// The table's flags; `None` where there is no table.
fn flags(netlink: &mut Netlink, scheme: &Scheme) -> Result<Option<u32>, Refused> {
    let mut flags = None;
    let message = Message::new(GET_TABLE, 0, &INET).text(TABLE, &scheme.table());
    let told = netlink.look(message, |incoming| {
        flags = Some(incoming.attributes(HEAD).find(TABLE_FLAGS).and_then(big).unwrap_or_default());
    });
    absent_is(told, ()).map(|()| flags)
}

/// Looks at the table's chains and rules.
pub fn look(netlink: &mut Netlink, scheme: &Scheme) -> Result<Table, Refused> {
    let Some(flags) = flags(netlink, scheme)? else { return Ok(Table::Missing) };
    let request = || Message::new(GET_CHAIN, 0, &INET);
    let chains = netlink.dump(request, |incoming| Chain::is_as_made(&incoming, scheme))?;
    let is_whole = chains.iter().filter(|as_made| **as_made).count() == Chain::all(scheme).count();
    if flags != 0 || !is_whole {
        return Ok(Table::Damaged);
    }
    let request = || Message::new(GET_RULE, 0, &INET).text(TABLE, &scheme.table());
    let found = absent_is(netlink.dump(request, |incoming| rule_of(&incoming, scheme)), Vec::new())?;
    let wanted: Vec<(String, String)> =
        rules(scheme).into_iter().map(|rule| (rule.chain.to_owned(), rule.comment)).collect();
    Ok(if found == wanted { Table::Whole } else { Table::Damaged })
}

/// Chain and comment of a rule of ours. KERNEL(4.20): older ones tell the rules of all tables.
fn rule_of(incoming: &Incoming<'_>, scheme: &Scheme) -> Option<(String, String)> {
    let attributes = incoming.attributes(HEAD);
    if attributes.find(TABLE).map(text_of)? != scheme.table() {
        return None;
    }
    let comment = attributes.find(RULE_USERDATA).and_then(comment_of).unwrap_or_default();
    Some((attributes.find(PART).map(text_of)?, comment))
}

/// The elements of the set in the table of that name.
pub fn elements(netlink: &mut Netlink, table: &str) -> Result<BTreeSet<Key>, Refused> {
    let request = || Message::new(GET_ELEMENT, 0, &INET).text(TABLE, table).text(PART, SLOTS);
    let parts = netlink.dump(request, |incoming| {
        let list = incoming.attributes(HEAD).inside(ELEMENTS);
        Some(list.filter_map(|(_, element)| key_in(element)).collect::<Vec<Key>>())
    });
    Ok(absent_is(parts, Vec::new())?.into_iter().flatten().collect())
}

fn key_in(element: &[u8]) -> Option<Key> {
    Attributes::of(element).inside(ELEMENT_KEY).find(VALUE)?.try_into().ok()
}

/// A missing table, or set, is an empty one.
fn absent_is<T>(told: Result<T, Refused>, empty: T) -> Result<T, Refused> {
    match told {
        Err(refused) if refused.errno == Errno::ENOENT => Ok(empty),
        told => told,
    }
}

/// Makes the table, or makes it whole, in one step and without letting go of an element; `note` is kept in a table
/// that is new.
///
/// # Errors
/// The kernel refused; nothing was changed.
pub fn make_table(netlink: &mut Netlink, scheme: &Scheme, note: Option<&str>) -> Result<(), Refused> {
    let table = scheme.table();
    let named = |kind, flags| Message::new(kind, flags, &INET).text(TABLE, &table);
    // One that somebody has put to sleep is woken first: in the step that wakes it no chain can be made.
    if flags(netlink, scheme)?.is_some_and(|flags| flags != 0) {
        transact(netlink, vec![named(NEW_TABLE, 0).big(TABLE_FLAGS, 0)])?;
    }
    let mut new = named(NEW_TABLE, NLM_F_CREATE);
    if let Some(note) = note {
        new = new.put(TABLE_USERDATA, &comment(note));
    }
    let mut messages = vec![new, set(named(NEW_SET, NLM_F_CREATE))];
    messages.push(named(DELETE_RULE, 0));
    for chain in Chain::all(scheme) {
        // One that is there may be another: what is made first can be deleted whether or not it was there.
        messages.push(named(NEW_CHAIN, NLM_F_CREATE).text(CHAIN_NAME, chain.name));
        messages.push(named(DELETE_CHAIN, 0).text(CHAIN_NAME, chain.name));
        messages.push(chain.message(named(NEW_CHAIN, NLM_F_CREATE)));
    }
    for rule in rules(scheme) {
        let message = named(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND).text(PART, rule.chain);
        let message = message.nest(RULE_EXPRESSIONS, rule.write);
        messages.push(message.put(RULE_USERDATA, &comment(&rule.comment)));
    }
    transact(netlink, messages)
}

/// Takes the whole table away; whether there was one.
///
/// # Errors
/// The kernel refused.
pub fn delete_table(netlink: &mut Netlink, table: &str) -> Result<bool, Refused> {
    let message = Message::new(DELETE_TABLE, 0, &INET).text(TABLE, table);
    absent_is(transact(netlink, vec![message]).map(|()| true), false)
}

/// Adds the elements of `slots`; fine where they are there.
///
/// # Errors
/// The kernel refused; of the slots before, as many as fit one transaction may have theirs.
pub fn add<'a>(netlink: &mut Netlink, scheme: &Scheme, slots: impl Iterator<Item = &'a Slot>) -> Result<(), Refused> {
    let table = scheme.table();
    let messages = slots.map(|slot| element(NEW_ELEMENT, &table, slot)).collect::<Vec<Message>>();
    in_parts(netlink, messages)
}

/// Takes the elements of `slots` out of the table of that name; fine where they are not there, or nothing is.
///
/// # Errors
/// The kernel refused.
pub fn remove<'a>(netlink: &mut Netlink, table: &str, slots: impl Iterator<Item = &'a Slot>) -> Result<(), Refused> {
    // What is added first, within the same step, can be removed whether or not it was there.
    let messages = slots.flat_map(|slot| [NEW_ELEMENT, DELETE_ELEMENT].map(|kind| element(kind, table, slot)));
    absent_is(in_parts(netlink, messages.collect()), ())
}

fn in_parts(netlink: &mut Netlink, messages: Vec<Message>) -> Result<(), Refused> {
    let mut rest = messages.into_iter().peekable();
    while rest.peek().is_some() {
        // An even number, so that what belongs together stays so.
        transact(netlink, rest.by_ref().take(ELEMENTS_AT_ONCE).collect())?;
    }
    Ok(())
}

fn transact(netlink: &mut Netlink, messages: Vec<Message>) -> Result<(), Refused> {
    netlink.transact(Message::new(BATCH_BEGIN, 0, &BATCH), messages, Message::new(BATCH_END, 0, &BATCH))
}

/// The key of `slot`.
pub fn key(slot: &Slot) -> Key {
    let mut key = [0; 20];
    let octets = slot.address.octets();
    let (link, address) = key.split_at_mut(16);
    address.copy_from_slice(&octets);
    for (place, byte) in link.iter_mut().zip(slot.link.bytes()) {
        *place = byte;
    }
    key
}

fn element(kind: u16, table: &str, slot: &Slot) -> Message {
    let flags = if kind == NEW_ELEMENT { NLM_F_CREATE } else { 0 };
    Message::new(kind, flags, &INET).text(TABLE, table).text(PART, SLOTS).nest(ELEMENTS, |list| {
        list.nest(LIST_ELEMENT, |element| {
            let element = element.nest(ELEMENT_KEY, |value| value.put(VALUE, &key(slot)));
            if kind == NEW_ELEMENT {
                element.put(ELEMENT_USERDATA, &comment(&format!("slot {}", slot.index)))
            } else {
                element
            }
        })
    })
}

/// A comment as `nft` writes and shows it: a type, a length, a text with its NUL.
fn comment(text: &str) -> Vec<u8> {
    // BOUND: comments of ours are short sentences; nf_tables takes 256 bytes.
    let len = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[0, len], text.as_bytes(), &[0]].concat()
}

fn comment_of(userdata: &[u8]) -> Option<String> {
    let [0, len, text @ ..] = userdata else { return None };
    text.get(..usize::from(*len)).map(text_of)
}

/// The set `slots`, of keys `ifname . ipv4_addr`.
fn set(message: Message) -> Message {
    /// How `nft` numbers the two types.
    const TYPE_IFNAME_IPV4: u32 = 41 << 6 | 7;
    const KEY_BYTES: u32 = 20;
    message.text(PART, SLOTS).big(3, 0).big(4, TYPE_IFNAME_IPV4).big(5, KEY_BYTES).big(10, 1)
}

/// A chain that the kernel hands packets to.
struct Chain {
    name: &'static str,
    kind: &'static str,
    hook: u32,
    priority: i32,
}

const PREROUTING: &str = "prerouting";
const FORWARD: &str = "forward";
const POSTROUTING: &str = "postrouting";

const CHAINS: [Chain; 3] = [
    Chain { name: PREROUTING, kind: "filter", hook: 0, priority: -300 },
    Chain { name: FORWARD, kind: "filter", hook: 2, priority: 0 },
    Chain { name: POSTROUTING, kind: "nat", hook: 4, priority: 100 },
];

/// The policy that lets pass what no rule drops.
const ACCEPT: u32 = 1;

impl Chain {
    /// Those that the table is to have.
    fn all(scheme: &Scheme) -> impl Iterator<Item = &'static Chain> {
        let has_uplink = scheme.uplink().is_some();
        CHAINS.iter().filter(move |chain| has_uplink || chain.name != POSTROUTING)
    }

    fn message(&self, message: Message) -> Message {
        message
            .text(CHAIN_NAME, self.name)
            .nest(CHAIN_HOOK, |hook| hook.big(1, self.hook).big(2, self.priority.cast_unsigned()))
            .big(CHAIN_POLICY, ACCEPT)
            .text(CHAIN_TYPE, self.kind)
    }

    /// Whether a chain is one of ours, as it was made; `None` where it is another table's.
    fn is_as_made(incoming: &Incoming<'_>, scheme: &Scheme) -> Option<bool> {
        let attributes = incoming.attributes(HEAD);
        if attributes.find(TABLE).map(text_of)? != scheme.table() {
            return None;
        }
        let text = |kind| attributes.find(kind).map(text_of).unwrap_or_default();
        let hook = |kind| attributes.inside(CHAIN_HOOK).find(kind).and_then(big);
        let found = (text(CHAIN_TYPE), hook(1), hook(2), attributes.find(CHAIN_POLICY).and_then(big));
        Some(Chain::all(scheme).any(|chain| {
            let made = (chain.kind.to_owned(), Some(chain.hook), Some(chain.priority.cast_unsigned()), Some(ACCEPT));
            text(CHAIN_NAME) == chain.name && found == made
        }))
    }
}

/// A number as nf_tables tells it: the other way round.
fn big(payload: &[u8]) -> Option<u32> {
    payload.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))
}

/// One rule: where it stands, what it says for people, what it says for the kernel.
struct Rule {
    chain: &'static str,
    comment: String,
    write: Box<dyn FnOnce(Message) -> Message>,
}

/// Keys of `meta`.
const IIFNAME: u32 = 6;
const OIFNAME: u32 = 7;
const NFPROTO: u32 = 15;
const IIFGROUP: u32 = 21;
const OIFGROUP: u32 = 22;
const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;
const NFPROTO_IPV4: u8 = 2;
/// Where the source address stands in an IPv4 header, and how long it is.
const SOURCE: [u32; 2] = [12, 4];
/// `established` and `related`.
const ANSWERS: u32 = 2 | 4;

/// Every rule, in order.
fn rules(scheme: &Scheme) -> Vec<Rule> {
    let group = scheme.group().to_ne_bytes();
    let from_slot = move |list| compare(meta(list, IIFGROUP), EQUAL, &group);
    let to_slot = move |list| compare(meta(list, OIFGROUP), EQUAL, &group);
    let rule = |chain, comment: &str, write| Rule { chain, comment: comment.to_owned(), write };
    let mut rules = vec![
        rule(
            PREROUTING,
            "a slot speaks IPv4",
            Box::new(move |list| dropped(compare(meta(from_slot(list), NFPROTO), UNEQUAL, &[NFPROTO_IPV4]))),
        ),
        rule(
            PREROUTING,
            "from its own address",
            Box::new(move |list| {
                let is_ipv4 = compare(meta(from_slot(list), NFPROTO), EQUAL, &[NFPROTO_IPV4]);
                let pair = payload(meta(is_ipv4, IIFNAME), SOURCE, 2);
                dropped(expression(pair, "lookup", |lookup| lookup.text(1, SLOTS).big(2, 1).big(5, 1)))
            }),
        ),
    ];
    let Some(uplink) = scheme.uplink().map(link_name) else {
        rules.push(rule(FORWARD, "a slot reaches this host alone", Box::new(move |list| dropped(from_slot(list)))));
        rules.push(rule(FORWARD, "and this host alone reaches a slot", Box::new(move |list| dropped(to_slot(list)))));
        return rules;
    };
    let name = scheme.uplink().unwrap_or_default();
    rules.push(rule(
        FORWARD,
        &format!("a slot reaches {name} alone"),
        Box::new(move |list| dropped(compare(meta(from_slot(list), OIFNAME), UNEQUAL, &uplink))),
    ));
    rules.push(rule(
        FORWARD,
        "and is reached by answers alone",
        Box::new(move |list| {
            let state = expression(to_slot(list), "ct", |ct| ct.big(2, 0).big(1, 1));
            dropped(compare(masked(state, &ANSWERS.to_ne_bytes()), EQUAL, &[0; 4]))
        }),
    ));
    let subnet = scheme.subnet();
    let mask = u32::MAX.checked_shl(32_u32.saturating_sub(subnet.prefix.into())).unwrap_or_default().to_be_bytes();
    rules.push(rule(
        POSTROUTING,
        &format!("{subnet}{APPEARS_AS}{name}"),
        Box::new(move |list| {
            let is_ipv4 = compare(meta(list, NFPROTO), EQUAL, &[NFPROTO_IPV4]);
            let inside = compare(masked(payload(is_ipv4, SOURCE, 1), &mask), EQUAL, &subnet.base.octets());
            let out = compare(meta(inside, OIFNAME), EQUAL, &uplink);
            expression(out, "masq", |masq| masq)
        }),
    ));
    rules
}

/// The name of a link as registers hold it.
fn link_name(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    for (place, byte) in padded.iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    padded
}

fn expression(list: Message, name: &str, write: impl FnOnce(Message) -> Message) -> Message {
    list.nest(LIST_ELEMENT, |element| element.text(1, name).nest(2, write))
}

/// Loads what is known about the packet into register 1.
fn meta(list: Message, key: u32) -> Message {
    expression(list, "meta", |meta| meta.big(2, key).big(1, 1))
}

/// Loads `[offset, length]` of the network header into a register.
fn payload(list: Message, place: [u32; 2], register: u32) -> Message {
    const NETWORK_HEADER: u32 = 1;
    let [offset, len] = place;
    expression(list, "payload", |payload| payload.big(1, register).big(2, NETWORK_HEADER).big(3, offset).big(4, len))
}

/// Goes on only where register 1 compares as told with `value`.
fn compare(list: Message, how: u32, value: &[u8]) -> Message {
    expression(list, "cmp", |cmp| cmp.big(1, 1).big(2, how).nest(3, |data| data.put(VALUE, value)))
}

/// Keeps the bits of `mask` in register 1.
fn masked(list: Message, mask: &[u8; 4]) -> Message {
    expression(list, "bitwise", |bits| {
        let bits = bits.big(1, 1).big(2, 1).big(3, 4);
        bits.nest(4, |data| data.put(VALUE, mask)).nest(5, |data| data.put(VALUE, &[0; 4]))
    })
}

/// Drops the packet.
fn dropped(list: Message) -> Message {
    const VERDICT: u16 = 2;
    expression(list, "immediate", |immediate| {
        immediate.big(1, 0).nest(2, |data| data.nest(VERDICT, |verdict| verdict.big(1, 0)))
    })
}
