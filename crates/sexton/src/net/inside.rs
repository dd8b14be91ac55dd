//! The inside of a slot: what its tenant finds there. Everything is done from within, by a thread that has entered, and
//! nothing of that holds the namespace afterwards.

use std::ffi::CString;
use std::net::Ipv4Addr;

use sexton_sys::SysError;
use sexton_sys::net::{Links, make_tap};

use super::NetError;
use super::scheme::Slot;
use super::socket::Refused;

/// The name of the pair's end inside.
pub const INNER: &str = "eth0";

/// Brings up loopback and the inner end with its address, its gateway and the default route.
pub fn set_up(slot: &Slot) -> Result<(), NetError> {
    connect(slot).map_err(|error| Refused::from(error).during(&format!("set up the inside of `{}`", slot.netns)))
}

fn connect(slot: &Slot) -> Result<(), SysError> {
    let (links, inner) = (Links::open()?, c_name(INNER));
    let mask = Ipv4Addr::from_bits(u32::MAX << (32 - u32::from(slot.prefix_len)));
    links.set_up(c"lo")?;
    links.set_address(&inner, slot.address.octets(), mask.octets())?;
    links.set_up(&inner)?;
    // What is asked for by ARP counts against `gc_thresh3`, which all namespaces of a host have in common: without this a
    // thousand slots in use at once lose packets on a kernel with its defaults.
    links.set_neighbour(&inner, slot.gateway.octets(), slot.host_mac)?;
    links.add_default_route(slot.gateway.octets())
}

/// Makes the TAP, where slots have one.
pub fn add_tap(slot: &Slot) -> Result<(), NetError> {
    let Some(tap) = &slot.tap else { return Ok(()) };
    let name = c_name(tap);
    let made = make_tap(&name).and_then(|()| Links::open()?.set_up(&name));
    made.map_err(|error| Refused::from(error).during("make the slot's TAP"))
}

/// A name of ours, which holds no NUL.
fn c_name(name: &str) -> CString {
    CString::new(name).unwrap_or_default()
}
