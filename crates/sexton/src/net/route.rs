//! Links, addresses, routes and the numbers of namespaces, as `rtnetlink(7)` has them.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use sexton_sys::Errno;

use super::inside::INNER;
use super::message::{Incoming, Message, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, number, text_of};
use super::scheme::{Mac, Slot};
use super::socket::{Netlink, Refused};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
const RTM_NEWLINKPROP: u16 = 108;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_FORWARDING: u16 = 1;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
/// Bytes of `struct ifinfomsg`, `struct ifaddrmsg`, `struct rtmsg` and `struct rtgenmsg`.
const LINK_HEAD: usize = 16;
const ADDRESS_HEAD: usize = 8;
const ROUTE_HEAD: usize = 12;
const NSID_HEAD: usize = 4;

/// A link of this namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address, of the length of ours.
    pub mac: Option<Mac>,
    /// What it is (`veth`).
    pub kind: String,
    /// Whether it is up.
    pub is_up: bool,
    /// The number of the namespace that its other end is in; `None` for this one.
    pub peer_nsid: Option<i32>,
    /// Whether packets that come in through it are forwarded.
    pub forwards: bool,
    /// Its group.
    pub group: u32,
}

impl Link {
    /// Whether it is the host's end of `slot`: nobody else makes a veth of that name with that address.
    pub fn is_of(&self, slot: &Slot) -> bool {
        self.name == slot.link && self.kind == "veth" && self.mac == Some(slot.host_mac)
    }

    /// Whether it is the inner end of `slot`, as it was made.
    pub fn is_inside(&self, slot: &Slot) -> bool {
        self.kind == "veth" && self.mac == Some(slot.inner_mac)
    }
}

/// An address or a route of this namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The link's number; 0 for none.
    pub link: u32,
    /// The address, or the first one.
    pub address: Ipv4Addr,
    /// Bits of the network.
    pub prefix_len: u8,
}

/// The link called `name`.
pub fn link(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, Refused> {
    let mut found = None;
    let message = filtered(RTM_GETLINK, 0).text(IFLA_IFNAME, name);
    match netlink.look(message, |incoming| found = link_of(&incoming)) {
        Ok(()) => Ok(found),
        Err(refused) if refused.errno == Errno::ENODEV => Ok(None),
        Err(refused) => Err(refused),
    }
}

/// All links.
pub fn links(netlink: &mut Netlink) -> Result<Vec<Link>, Refused> {
    netlink.dump(|| filtered(RTM_GETLINK, 0), |incoming| link_of(&incoming))
}

/// A request about a link, answered without counters, which are most of an answer's bytes.
fn filtered(kind: u16, index: u32) -> Message {
    const RTEXT_FILTER_SKIP_STATS: u32 = 8;
    Message::new(kind, 0, &link_head(index, 0, 0)).number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
}

fn link_of(incoming: &Incoming<'_>) -> Option<Link> {
    if incoming.kind != RTM_NEWLINK {
        return None;
    }
    let attributes = incoming.attributes(LINK_HEAD);
    let of = |kind| attributes.find(kind).and_then(|payload| number(payload, 0));
    let inet = attributes.inside(IFLA_AF_SPEC).inside(AF_INET.into());
    Some(Link {
        index: number(incoming.body, 4)?,
        name: text_of(attributes.find(IFLA_IFNAME)?),
        mac: attributes.find(IFLA_ADDRESS).and_then(|mac| mac.try_into().ok()),
        kind: attributes.inside(IFLA_LINKINFO).find(IFLA_INFO_KIND).map(text_of).unwrap_or_default(),
        is_up: number(incoming.body, 8)? & IFF_UP != 0,
        peer_nsid: of(IFLA_LINK_NETNSID).map(u32::cast_signed),
        // An array of all settings, the first of which is number 1.
        forwards: inet.find(IFLA_INET_CONF).and_then(|conf| number(conf, 0)).is_some_and(|value| value != 0),
        group: of(IFLA_GROUP).unwrap_or_default(),
    })
}

/// All IPv4 addresses.
pub fn addresses(netlink: &mut Netlink) -> Result<Vec<Place>, Refused> {
    let request = || Message::new(RTM_GETADDR, 0, &[AF_INET, 0, 0, 0, 0, 0, 0, 0]);
    netlink.dump(request, |incoming| {
        let attributes = incoming.attributes(ADDRESS_HEAD);
        let address = attributes.find(IFA_LOCAL).or_else(|| attributes.find(IFA_ADDRESS));
        Some(Place { link: number(incoming.body, 4)?, address: ipv4(address?)?, prefix_len: *incoming.body.get(1)? })
    })
}

/// All IPv4 routes of the main table.
pub fn routes(netlink: &mut Netlink) -> Result<Vec<Place>, Refused> {
    const MAIN: u8 = 254;
    let request = || Message::new(RTM_GETROUTE, 0, &[AF_INET, 0, 0, 0, MAIN, 0, 0, 0, 0, 0, 0, 0]);
    let found = netlink.dump(request, |incoming| {
        let attributes = incoming.attributes(ROUTE_HEAD);
        let place = Place {
            link: attributes.find(RTA_OIF).and_then(|oif| number(oif, 0)).unwrap_or_default(),
            address: attributes.find(RTA_DST).and_then(ipv4).unwrap_or(Ipv4Addr::UNSPECIFIED),
            prefix_len: *incoming.body.get(1)?,
        };
        // KERNEL(4.20): before, all tables are told whatever was asked for.
        (incoming.body.get(4) == Some(&MAIN)).then_some(place)
    });
    match found {
        // A host that has no route yet has no table.
        Err(refused) if refused.errno == Errno::ENOENT => Ok(Vec::new()),
        found => found,
    }
}

/// Makes the pair of `slot`, the host's end here and the inner one born in the namespace behind `inside`.
///
/// # Errors
/// `EEXIST`: one of the names is taken, and nothing was made.
pub fn add_pair(netlink: &mut Netlink, slot: &Slot, group: u32, inside: BorrowedFd<'_>) -> Result<(), Refused> {
    let inside = inside.as_raw_fd().cast_unsigned();
    let peer = |data: Message| {
        data.nest(VETH_INFO_PEER, |peer| {
            peer.raw(&link_head(0, 0, 0))
                .text(IFLA_IFNAME, INNER)
                .put(IFLA_ADDRESS, &slot.inner_mac)
                .number(IFLA_NET_NS_FD, inside)
        })
    };
    let message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_head(0, 0, 0))
        .text(IFLA_IFNAME, &slot.link)
        .put(IFLA_ADDRESS, &slot.host_mac)
        .number(IFLA_GROUP, group)
        .nest(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, peer));
    netlink.ask(vec![message])
}

/// Gives link `index` the alternative name of the slot's network, which no other link can have then.
///
/// # Errors
/// `EEXIST`: the network is another link's.
///
/// # Kernel
/// 5.5; a link of an older one has no alternative names, and gets none.
pub fn claim_network(netlink: &mut Netlink, slot: &Slot, index: u32) -> Result<(), Refused> {
    let message = Message::new(RTM_NEWLINKPROP, NLM_F_CREATE | NLM_F_EXCL, &link_head(index, 0, 0))
        .nest(IFLA_PROP_LIST, |names| names.text(IFLA_ALT_IFNAME, &slot.network_name()));
    match netlink.ask(vec![message]) {
        Err(refused) if refused.errno == Errno::EOPNOTSUPP => Ok(()),
        told => told,
    }
}

/// Takes link `index` away, and with a veth its other end; fine where it is gone.
pub fn delete_link(netlink: &mut Netlink, index: u32) -> Result<(), Refused> {
    match netlink.ask(vec![Message::new(RTM_DELLINK, 0, &link_head(index, 0, 0))]) {
        Err(refused) if refused.errno != Errno::ENODEV => Err(refused),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Has packets that come in through link `index` forwarded, or not.
pub fn set_forwarding(netlink: &mut Netlink, index: u32, on: bool) -> Result<(), Refused> {
    netlink.ask(vec![forwarding(Message::new(RTM_SETLINK, 0, &link_head(index, 0, 0)), on)])
}

fn forwarding(message: Message, on: bool) -> Message {
    let conf = |inet: Message| inet.nest(IFLA_INET_CONF, |conf| conf.number(IPV4_DEVCONF_FORWARDING, u32::from(on)));
    message.nest(IFLA_AF_SPEC, |families| families.nest(AF_INET.into(), conf))
}

/// Brings the host's end, link `index`, to what it is to be; fine where it is that already.
pub fn set_host_end(netlink: &mut Netlink, slot: &Slot, index: u32, forwards: bool) -> Result<(), Refused> {
    netlink.ask(vec![forwarding(set_up(index), forwards), set_address(index, slot.gateway, slot)])
}

fn set_up(index: u32) -> Message {
    Message::new(RTM_SETLINK, 0, &link_head(index, IFF_UP, IFF_UP))
}

fn set_address(index: u32, address: Ipv4Addr, slot: &Slot) -> Message {
    let [a, b, c, d] = index.to_ne_bytes();
    let broadcast = Ipv4Addr::from_bits(slot.address.to_bits() | 3);
    Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &[AF_INET, slot.prefix_len, 0, 0, a, b, c, d])
        .put(IFA_LOCAL, &address.octets())
        .put(IFA_ADDRESS, &address.octets())
        .put(IFA_BROADCAST, &broadcast.octets())
}

/// Gives the namespace behind `fd` the number `nsid`, by which this namespace knows it as long as it lasts.
///
/// # Errors
/// `EEXIST`: the number is another's, or the namespace has one.
pub fn set_nsid(netlink: &mut Netlink, fd: BorrowedFd<'_>, nsid: i32) -> Result<(), Refused> {
    let message = Message::new(RTM_NEWNSID, 0, &[0; NSID_HEAD])
        .number(NETNSA_NSID, nsid.cast_unsigned())
        .number(NETNSA_FD, fd.as_raw_fd().cast_unsigned());
    netlink.ask(vec![message])
}

/// The number of the namespace behind `fd`; `None` where it has none, or `fd` is no network namespace.
pub fn nsid_of(netlink: &mut Netlink, fd: BorrowedFd<'_>) -> Result<Option<i32>, Refused> {
    let message = Message::new(RTM_GETNSID, 0, &[0; NSID_HEAD]).number(NETNSA_FD, fd.as_raw_fd().cast_unsigned());
    match ask_nsid(netlink, message) {
        Err(refused) if refused.errno == Errno::EINVAL => Ok(None),
        told => Ok(told?.filter(|nsid| *nsid >= 0)),
    }
}

/// Whether somebody still holds the namespace of number `nsid`: a process, a mount, a descriptor, a socket, an open
/// TAP. One that nobody holds is gone, also while the kernel is still clearing it away.
pub fn is_held(netlink: &mut Netlink, nsid: i32) -> Result<bool, Refused> {
    let message = Message::new(RTM_GETNSID, 0, &[0; NSID_HEAD]).number(NETNSA_NSID, nsid.cast_unsigned());
    match ask_nsid(netlink, message) {
        Err(refused) if refused.errno == Errno::ENOENT => Ok(false),
        told => Ok(told?.is_some_and(|nsid| nsid >= 0)),
    }
}

fn ask_nsid(netlink: &mut Netlink, message: Message) -> Result<Option<i32>, Refused> {
    let mut found = None;
    netlink.look(message, |incoming| {
        found = incoming.attributes(NSID_HEAD).find(NETNSA_NSID).and_then(|nsid| number(nsid, 0));
    })?;
    Ok(found.map(u32::cast_signed))
}

/// `struct ifinfomsg`.
fn link_head(index: u32, flags: u32, change: u32) -> [u8; LINK_HEAD] {
    let mut head = [0; LINK_HEAD];
    let words = [0, index, flags, change].map(u32::to_ne_bytes);
    for (place, byte) in head.iter_mut().zip(words.as_flattened()) {
        *place = *byte;
    }
    head
}

fn ipv4(payload: &[u8]) -> Option<Ipv4Addr> {
    payload.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}
