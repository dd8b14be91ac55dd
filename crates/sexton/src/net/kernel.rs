//! Making slots, taking them down, looking at them, and putting back what is missing.
//!
//! ```text
//!   table ─► new namespace, numbered ─► entry ─► pair ─► host end ─► inner end, TAP ─► element
//! ```
//!
//! Cut off anywhere, what exists is proven ours by the kernel: the namespace by its number, the entry by the namespace
//! or its text, the pair by its hardware address. Taking down does not ask how far the making came.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use sexton_core::proc::{self, ReadProcError};
use sexton_plan::slot::{Part, Seen};
use sexton_sys::Errno;
use sexton_sys::net::{self, Family};

use super::entry::{self, Directory, Entry};
use super::inside;
use super::nft::{self, Table};
use super::route::{self, Link, Place};
use super::scheme::{Scheme, Slot};
use super::socket::{Netlink, Refused};
use super::{Made, NetError, Released};

/// BOUND: how long a namespace that nobody holds may take to leave the kernel's list; measured in tens of milliseconds,
/// more while hundreds leave.
const CLEARING: Duration = Duration::from_secs(5);
/// BOUND: how long a namespace may be held by what has ended: the kernel gives sockets back after a grace period of
/// its own, which is milliseconds.
const SETTLING: Duration = Duration::from_millis(200);
/// Between two looks at either.
const PAUSE: Duration = Duration::from_micros(500);

/// The kernel's side of one daemon's network: sockets in the daemon's own namespace.
#[derive(Debug)]
pub struct Kernel {
    scheme: Scheme,
    route: Netlink,
    filter: Netlink,
    directory: Directory,
    /// The uplink whose forwarding this process switched on.
    switched_on: Option<String>,
}

/// What is on the host beside our slots.
struct Ground {
    addresses: Vec<Place>,
    routes: Vec<Place>,
}

impl Ground {
    fn look(netlink: &mut Netlink) -> Result<Ground, NetError> {
        let addresses = route::addresses(netlink).map_err(|refused| refused.during("look at addresses"))?;
        let routes = route::routes(netlink).map_err(|refused| refused.during("look at routes"))?;
        Ok(Ground { addresses, routes })
    }

    /// What of somebody else's is in `slot`'s network; `own` is the number of its link.
    fn stranger(&self, slot: &Slot, own: Option<u32>) -> Option<String> {
        let base = slot.gateway.to_bits() & !3;
        let is_inside = |place: &&Place| place.address.to_bits() & !3 == base && Some(place.link) != own;
        if let Some(address) = self.addresses.iter().find(is_inside) {
            return Some(format!("address {} is on another link", address.address));
        }
        let is_route = |place: &&Place| is_inside(place) && place.prefix_len >= slot.prefix_len;
        let route = self.routes.iter().find(is_route)?;
        Some(format!("there is a route to {}/{}", route.address, route.prefix_len))
    }
}

/// Sockets to the kernel's links and rules.
///
/// # Errors
/// `Unsupported` where there is no such family, or a filter refuses it.
pub fn sockets() -> Result<(Netlink, Netlink), NetError> {
    let open = |family, what: &str| Netlink::open(family).map_err(|refused| refused.during(what));
    let route = open(Family::Route, "open a netlink socket for links")?;
    Ok((route, open(Family::Netfilter, "open a netlink socket for rules")?))
}

impl Kernel {
    /// Opens the sockets, in the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel has no such family, or too few descriptors are left.
    pub fn open(scheme: Scheme) -> Result<Kernel, NetError> {
        let (route, filter) = sockets()?;
        Ok(Kernel { scheme, route, filter, directory: Directory::default(), switched_on: None })
    }

    /// Makes `slots`. The calling thread changes namespaces.
    pub fn make(&mut self, slots: &[Slot]) -> Vec<Result<Made, NetError>> {
        let ground = match self.ensure_table().and_then(|()| Ground::look(&mut self.route)) {
            Ok(ground) => ground,
            Err(error) => return slots.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut made: Vec<Result<Made, NetError>> = slots.iter().map(|slot| self.make_one(slot, &ground)).collect();
        let whole = slots.iter().zip(&made).filter(|(_, made)| made.is_ok()).map(|(slot, _)| slot);
        if let Err(refused) = nft::add(&mut self.filter, &self.scheme, whole) {
            let error = refused.during("add the slots' elements");
            for (slot, made) in slots.iter().zip(&mut made).filter(|(_, made)| made.is_ok()) {
                self.roll_back(slot);
                *made = Err(error.clone());
            }
        }
        made
    }

    fn make_one(&mut self, slot: &Slot, ground: &Ground) -> Result<Made, NetError> {
        // What an earlier attempt left; what is not ours refuses, or is somebody's: of a ledger that is lost, or of
        // another daemon with our cgroup.
        let left = self.look(slot)?;
        if let Some(stranger) = left.stranger.or_else(|| ground.stranger(slot, left.link)) {
            return Err(NetError::Foreign(stranger));
        }
        self.take_down(std::slice::from_ref(slot)).into_iter().collect::<Result<Vec<_>, _>>()?;
        let made = self.build(slot);
        if made.is_err() {
            self.roll_back(slot);
        }
        made
    }

    fn build(&mut self, slot: &Slot) -> Result<Made, NetError> {
        let (namespace, ns_ino) = self.new_namespace(slot)?;
        entry::bind(slot, namespace.as_fd(), &mut self.directory)?;
        self.connect(slot, namespace.as_fd())?;
        inside::add_tap(slot)?;
        Ok(Made { ns_ino })
    }

    /// Takes the calling thread into a new namespace, which gets the slot's number.
    fn new_namespace(&mut self, slot: &Slot) -> Result<(File, u64), NetError> {
        net::unshare().map_err(|error| Refused::from(error).during("make a network namespace"))?;
        let failed = |error| NetError::Failed(format!("could not open a new namespace: {error}"));
        let namespace = File::open("/proc/thread-self/ns/net").map_err(failed)?;
        let ino = namespace.metadata().map_err(failed)?.ino();
        let deadline = Instant::now() + CLEARING;
        loop {
            match route::set_nsid(&mut self.route, namespace.as_fd(), slot.nsid) {
                Ok(()) => return Ok((namespace, ino)),
                // The namespace before is still there: held, or nobody's and about to leave.
                Err(refused) if refused.errno == Errno::EEXIST => {
                    if is_held(&mut self.route, slot)? || Instant::now() > deadline {
                        return Err(busy(slot));
                    }
                    std::thread::sleep(PAUSE);
                }
                Err(refused) => return Err(refused.during("number the slot's namespace")),
            }
        }
    }

    /// Makes the pair between here and `namespace`, and both its ends as they are to be. The calling thread is inside.
    fn connect(&mut self, slot: &Slot, namespace: BorrowedFd<'_>) -> Result<(), NetError> {
        let group = self.scheme.group();
        match route::add_pair(&mut self.route, slot, group, namespace) {
            Ok(()) => {}
            Err(refused) if refused.errno == Errno::EEXIST => {
                return Err(NetError::Foreign(format!("link `{}` was made meanwhile", slot.link)));
            }
            Err(refused) => return Err(refused.during(&format!("make link `{}`", slot.link))),
        }
        let link = self.link(slot)?.filter(|link| link.is_of(slot));
        let Some(link) = link else {
            return Err(NetError::Failed(format!("link `{}` vanished", slot.link)));
        };
        // RACE: a daemon that looked when we did makes the same addresses now.
        match route::claim_network(&mut self.route, slot, link.index) {
            Ok(()) => {}
            Err(refused) if refused.errno == Errno::EEXIST => {
                return Err(NetError::Foreign(format!("another daemon makes a slot at {}", slot.gateway)));
            }
            Err(refused) => return Err(refused.during(&format!("claim the network of `{}`", slot.link))),
        }
        self.set_host_end(slot, link.index)?;
        inside::set_up(slot)
    }

    fn set_host_end(&mut self, slot: &Slot, index: u32) -> Result<(), NetError> {
        let forwards = self.scheme.uplink().is_some();
        route::set_host_end(&mut self.route, slot, index, forwards)
            .map_err(|refused| refused.during(&format!("set up link `{}`", slot.link)))
    }

    /// Takes `slots` down.
    pub fn release(&mut self, slots: &[Slot]) -> Vec<Result<Released, NetError>> {
        match self.remove_elements(slots) {
            Ok(()) => self.take_down(slots),
            Err(refused) => {
                let error = refused.during("remove the slots' elements");
                slots.iter().map(|_| Err(error.clone())).collect()
            }
        }
    }

    /// Takes the elements of `slots` out of the present table, and out of those that they were made with.
    fn remove_elements(&mut self, slots: &[Slot]) -> Result<(), Refused> {
        let present = self.scheme.table();
        let former: BTreeSet<&str> = slots.iter().map(Slot::table).filter(|table| *table != present).collect();
        for table in former {
            nft::remove(&mut self.filter, table, slots.iter().filter(|slot| slot.table() == table))?;
        }
        nft::remove(&mut self.filter, &present, slots.iter())
    }

    /// Takes away pairs and entries, where they are ours, and sees to it that nobody holds the namespaces.
    ///
    /// A pair ends with its namespace. To delete it would take a grace period of the kernel's for each, and namespaces
    /// that end together share one.
    fn take_down(&mut self, slots: &[Slot]) -> Vec<Result<Released, NetError>> {
        let mut released: Vec<_> = slots.iter().map(|slot| self.let_go(slot)).collect();
        let began = Instant::now();
        for (slot, released) in slots.iter().zip(&mut released).filter(|(_, released)| released.is_ok()) {
            if let Err(error) = self.see_off(slot, began) {
                *released = Err(error);
            }
        }
        released
    }

    /// Removes the entry, which lets the namespace end; a pair without one is deleted.
    fn let_go(&mut self, slot: &Slot) -> Result<Released, NetError> {
        let link = self.link(slot)?.filter(|link| link.is_of(slot));
        match (entry::look(&mut self.route, slot)?, link) {
            (Entry::Ours(_) | Entry::Empty, _) => entry::remove(slot).map(|()| Released::Now),
            (Entry::Missing | Entry::Foreign(_), Some(link)) => self.delete_link(&link).map(|()| Released::Now),
            (Entry::Missing | Entry::Foreign(_), None) => Ok(Released::WasGone),
        }
    }

    /// Waits until the slot's namespace and pair have ended; cuts a namespace off that somebody holds.
    fn see_off(&mut self, slot: &Slot, began: Instant) -> Result<(), NetError> {
        loop {
            let is_held = is_held(&mut self.route, slot)?;
            let link = self.link(slot)?.filter(|link| link.is_of(slot));
            let is_late = began.elapsed() > if is_held { SETTLING } else { CLEARING };
            match link {
                None if !is_held => return Ok(()),
                Some(link) if is_late => self.delete_link(&link)?,
                None if is_late => return Err(busy(slot)),
                Some(_) | None => std::thread::sleep(PAUSE),
            }
        }
    }

    fn delete_link(&mut self, link: &Link) -> Result<(), NetError> {
        route::delete_link(&mut self.route, link.index)
            .map_err(|refused| refused.during(&format!("remove link `{}`", link.name)))
    }

    fn roll_back(&mut self, slot: &Slot) {
        for error in self.take_down(std::slice::from_ref(slot)).into_iter().filter_map(Result::err) {
            tracing::warn!(%error, slot = slot.index, "half a slot is left; it is taken down when next looked at");
        }
    }

    fn link(&mut self, slot: &Slot) -> Result<Option<Link>, NetError> {
        route::link(&mut self.route, &slot.link).map_err(|refused| refused.during(&format!("look at `{}`", slot.link)))
    }

    /// What bears the names of `slot`.
    fn look(&mut self, slot: &Slot) -> Result<Left, NetError> {
        let link = self.link(slot)?;
        let entry = entry::look(&mut self.route, slot)?;
        let stranger = match stranger(slot, link.as_ref(), &entry) {
            None => tenant(slot, &entry)?,
            found => found,
        };
        Ok(Left { stranger, link: link.map(|link| link.index) })
    }

    /// Looks at all of `slots`.
    pub fn observe(&mut self, slots: &[Slot]) -> Result<Vec<Seen>, NetError> {
        let links = route::links(&mut self.route).map_err(|refused| refused.during("look at links"))?;
        let look = Look {
            links: links.into_iter().map(|link| (link.name.clone(), link)).collect(),
            ground: Ground::look(&mut self.route)?,
            table: nft::look(&mut self.filter, &self.scheme).map_err(|refused| refused.during("look at rules"))?,
            elements: nft::elements(&mut self.filter, &self.scheme.table())
                .map_err(|refused| refused.during("look at the slots' elements"))?,
            uplink: self.scheme.uplink().map(str::to_owned),
        };
        let see = |slot| look.see(slot, &mut self.route).unwrap_or_else(|error| Seen::Unread(error.to_string()));
        Ok(slots.iter().map(see).collect())
    }

    /// Looks at all of `slots`, none of which is in a row: who lives there is foreign.
    pub fn observe_unclaimed(&mut self, slots: &[Slot]) -> Result<Vec<Seen>, NetError> {
        let seen = self.observe(slots)?;
        let with_tenants = slots.iter().zip(seen).map(|(slot, seen)| match seen {
            Seen::Foreign(_) | Seen::Unread(_) | Seen::Absent => seen,
            Seen::Whole | Seen::Damaged(_) | Seen::Bare => {
                let tenant = entry::look(&mut self.route, slot).and_then(|entry| tenant(slot, &entry));
                tenant.map_or_else(|error| Seen::Unread(error.to_string()), |tenant| tenant.map_or(seen, Seen::Foreign))
            }
        });
        Ok(with_tenants.collect())
    }

    /// Puts back what is missing of `slot`. The calling thread changes namespaces.
    pub fn repair(&mut self, slot: &Slot, holder: Option<BorrowedFd<'_>>) -> Result<(), NetError> {
        let link = self.link(slot)?;
        let entry = entry::look(&mut self.route, slot)?;
        if let Some(stranger) = stranger(slot, link.as_ref(), &entry) {
            return Err(NetError::Foreign(stranger));
        }
        self.ensure_table()?;
        let namespace = self.restore_entry(slot, entry, holder)?;
        let is_connected = |link: &Link| link.peer_nsid == Some(slot.nsid);
        match link {
            Some(link) if is_connected(&link) => self.set_host_end(slot, link.index)?,
            left => {
                if let Some(link) = left {
                    self.delete_link(&link)?;
                }
                net::enter(namespace.as_raw_fd()).map_err(|error| Refused::from(error).during("enter a namespace"))?;
                cut_off(slot)?;
                self.connect(slot, namespace.as_fd())?;
            }
        }
        nft::add(&mut self.filter, &self.scheme, std::iter::once(slot))
            .map_err(|refused| refused.during("add the slot's element"))
    }

    /// The slot's namespace, and its entry where that was gone.
    fn restore_entry(&mut self, slot: &Slot, entry: Entry, holder: Option<BorrowedFd<'_>>) -> Result<File, NetError> {
        let is_empty = match entry {
            Entry::Ours(namespace) => return Ok(namespace),
            Entry::Foreign(stranger) => return Err(NetError::Foreign(stranger)),
            Entry::Empty => true,
            Entry::Missing => false,
        };
        let Some(holder) = holder else {
            return Err(NetError::Failed(format!("the namespace of slot {} is gone", slot.index)));
        };
        let nsid = route::nsid_of(&mut self.route, holder).map_err(|refused| refused.during("look at a namespace"))?;
        if nsid != Some(slot.nsid) {
            return Err(NetError::Failed(format!("its process has left the namespace of slot {}", slot.index)));
        }
        let copied = holder.try_clone_to_owned();
        let namespace = copied.map_err(|error| NetError::Failed(format!("could not copy a descriptor: {error}")))?;
        if is_empty {
            entry::mount_onto(slot, namespace.as_fd())?;
        } else {
            entry::bind(slot, namespace.as_fd(), &mut self.directory)?;
        }
        Ok(File::from(namespace))
    }

    /// The table as it is to be, and forwarding at the uplink.
    fn ensure_table(&mut self) -> Result<(), NetError> {
        let table = nft::look(&mut self.filter, &self.scheme).map_err(|refused| refused.during("look at rules"))?;
        if table != Table::Whole {
            // Noted before it is changed, where a crash does not lose it.
            let note = self.note_to_make()?;
            nft::make_table(&mut self.filter, &self.scheme, note.as_deref())
                .map_err(|refused| refused.during("make the nft table"))?;
        }
        // Looked at once the table is there, by which others know that we need it.
        match self.uplink()? {
            Some(link) if !link.forwards => {
                self.set_forwarding(&link, true)?;
                self.switched_on = Some(link.name);
            }
            Some(_) | None => {}
        }
        Ok(())
    }

    /// What a new table is to say about the uplink: that it did not forward before a daemon of ours had it do so. Every
    /// table that needs it says so, and whoever is the last of them puts it back.
    fn note_to_make(&mut self) -> Result<Option<String>, NetError> {
        // RACE: one that goes switches it off first and deletes its note then, one that comes notes it first and switches
        // it on then; so it is looked at between two looks at the notes.
        let Some(note) = self.scheme.uplink().map(note_of) else { return Ok(None) };
        let was_noted = self.is_noted(&note)?;
        let link = self.uplink()?;
        let is_off = link.is_some_and(|link| !link.forwards || self.switched_on.as_ref() == Some(&link.name));
        Ok(if was_noted || is_off || self.is_noted(&note)? { Some(note) } else { None })
    }

    /// Whether a daemon of ours has noted this.
    fn is_noted(&mut self, note: &str) -> Result<bool, NetError> {
        let notes = nft::notes(&mut self.filter).map_err(|refused| refused.during("look at the tables"))?;
        Ok(notes.iter().any(|(_, noted)| noted.as_deref() == Some(note)))
    }

    /// Whether a table beside `table` needs forwarding of the link `name`, or will put it back.
    fn is_needed_beside(&mut self, table: &str, name: &str) -> Result<bool, NetError> {
        let note = note_of(name);
        let notes = nft::notes(&mut self.filter).map_err(|refused| refused.during("look at the tables"))?;
        let users =
            nft::users(&mut self.filter, name).map_err(|refused| refused.during("look at the tables' rules"))?;
        let is_noted = notes.iter().any(|(other, noted)| other != table && noted.as_deref() == Some(&note));
        Ok(is_noted || users.iter().any(|other| other != table))
    }

    fn uplink(&mut self) -> Result<Option<Link>, NetError> {
        let Some(name) = self.scheme.uplink() else { return Ok(None) };
        let found = route::link(&mut self.route, name).map_err(|refused| refused.during("look at the uplink"))?;
        let missing = || NetError::Unsupported(format!("`slots.uplink`: there is no link `{name}`"));
        found.map(Some).ok_or_else(missing)
    }

    fn set_forwarding(&mut self, link: &Link, on: bool) -> Result<(), NetError> {
        route::set_forwarding(&mut self.route, link.index, on)
            .map_err(|refused| refused.during(&format!("set forwarding of `{}`", link.name)))
    }

    /// Takes down the table of that name, and puts back what it says was changed for it. One of a former scheme is
    /// ours while nobody else has an element in it.
    pub fn dismantle(&mut self, table: &str) -> Result<Released, NetError> {
        let is_former = table != self.scheme.table();
        if is_former {
            let elements = nft::elements(&mut self.filter, table);
            let elements = elements.map_err(|refused| refused.during("look at the elements of a former table"))?;
            if !elements.is_empty() {
                return Err(NetError::Foreign(format!("table `{table}` holds what was not made for this node")));
            }
        }
        let note = nft::note(&mut self.filter, table).map_err(|refused| refused.during("look at the table"))?;
        let noted = note.as_deref().and_then(link_noted).map(str::to_owned);
        let changed = noted.or_else(|| self.switched_on.clone().filter(|_| !is_former));
        // Before the note goes, or a crash would lose it.
        changed.iter().try_for_each(|link| self.put_back_forwarding(link, table))?;
        let was_there =
            nft::delete_table(&mut self.filter, table).map_err(|refused| refused.during("remove the nft table"))?;
        // RACE: of daemons that go at one moment each saw the other's table; whoever was last sees none now.
        changed.iter().try_for_each(|link| self.put_back_forwarding(link, table))?;
        if !is_former {
            self.switched_on = None;
        }
        self.directory.remove();
        Ok(if was_there { Released::Now } else { Released::WasGone })
    }

    /// Switches forwarding of the uplink `name` off again, unless a table beside `table` needs it.
    fn put_back_forwarding(&mut self, name: &str, table: &str) -> Result<(), NetError> {
        let found = route::link(&mut self.route, name).map_err(|refused| refused.during("look at the uplink"))?;
        let Some(link) = found else { return Ok(()) };
        if self.is_needed_beside(table, name)? {
            return Ok(());
        }
        self.set_forwarding(&link, false)?;
        // RACE: a table that was made meanwhile may have found it switched on.
        if self.is_needed_beside(table, name)? { self.set_forwarding(&link, true) } else { Ok(()) }
    }
}

/// What is left of a slot before it is made.
struct Left {
    stranger: Option<String>,
    link: Option<u32>,
}

fn stranger(slot: &Slot, link: Option<&Link>, entry: &Entry) -> Option<String> {
    if link.is_some_and(|link| !link.is_of(slot)) {
        return Some(format!("link `{}` was made by somebody else", slot.link));
    }
    match entry {
        Entry::Foreign(stranger) => Some(stranger.clone()),
        Entry::Missing | Entry::Ours(_) | Entry::Empty => None,
    }
}

/// Who lives in the slot's namespace, if anybody does.
fn tenant(slot: &Slot, entry: &Entry) -> Result<Option<String>, NetError> {
    let Entry::Ours(namespace) = entry else { return Ok(None) };
    let failed = |why: String| NetError::Failed(format!("could not look who is in `{}`: {why}", slot.netns));
    let ino = namespace.metadata().map_err(|error| failed(error.to_string()))?.ino();
    for pid in proc::all().map_err(|error| failed(error.to_string()))? {
        match proc::network_namespace(pid) {
            Ok(its) if its == ino => {
                return Ok(Some(format!("process {pid} lives in `{}`, which is in no row", slot.netns)));
            }
            Ok(_) | Err(ReadProcError::Gone(_)) => {}
            Err(error) => return Err(failed(error.to_string())),
        }
    }
    Ok(None)
}

/// Deletes what is left of the slot's pair inside, where the calling thread is: the host's end may have been renamed or
/// moved away, and goes with it.
fn cut_off(slot: &Slot) -> Result<(), NetError> {
    let what = format!("remove what is left inside `{}`", slot.netns);
    let mut inner = Netlink::open(Family::Route).map_err(|refused| refused.during(&what))?;
    let left = route::link(&mut inner, inside::INNER).map_err(|refused| refused.during(&what))?;
    let left = left.filter(|left| left.is_inside(slot));
    left.map_or(Ok(()), |left| route::delete_link(&mut inner, left.index)).map_err(|refused| refused.during(&what))
}

fn is_held(netlink: &mut Netlink, slot: &Slot) -> Result<bool, NetError> {
    route::is_held(netlink, slot.nsid).map_err(|refused| refused.during("ask who holds a namespace"))
}

fn busy(slot: &Slot) -> NetError {
    NetError::Busy(format!("somebody holds the namespace of slot {}", slot.index))
}

/// What is noted in the table about an uplink whose forwarding is to be put back.
fn note_of(link: &str) -> String {
    format!("forwarding of {link} was off")
}

fn link_noted(note: &str) -> Option<&str> {
    note.strip_prefix("forwarding of ")?.strip_suffix(" was off")
}

/// One look at everything but the entries.
struct Look {
    links: BTreeMap<String, Link>,
    ground: Ground,
    table: Table,
    elements: BTreeSet<nft::Key>,
    uplink: Option<String>,
}

impl Look {
    /// Whether the uplink forwards. One that is not there cannot be mended: whoever needs it next is told.
    fn reaches_out(&self) -> bool {
        let uplink = self.uplink.as_ref().and_then(|name| self.links.get(name));
        uplink.is_none_or(|link| link.forwards)
    }

    fn see(&self, slot: &Slot, netlink: &mut Netlink) -> Result<Seen, NetError> {
        let entry = entry::look(netlink, slot)?;
        let link = self.links.get(&slot.link);
        if let Some(stranger) = stranger(slot, link, &entry) {
            return Ok(Seen::Foreign(stranger));
        }
        let has_element = self.elements.contains(&nft::key(slot));
        if link.is_none() && matches!(entry, Entry::Missing) && !has_element {
            return Ok(match self.ground.stranger(slot, None) {
                Some(stranger) => Seen::Foreign(stranger),
                None if is_held(netlink, slot)? => Seen::Bare,
                None => Seen::Absent,
            });
        }
        let is_connected =
            |link: &&Link| link.is_up && link.peer_nsid == Some(slot.nsid) && link.forwards == self.uplink.is_some();
        let is_gateway =
            |place: &Place| place.address == slot.gateway && Some(place.link) == link.map(|link| link.index);
        let parts = [
            (Part::Namespace, matches!(entry, Entry::Ours(_))),
            (Part::Link, link.filter(is_connected).is_some()),
            (Part::Address, self.ground.addresses.iter().any(is_gateway)),
            (Part::Rule, has_element && self.table == Table::Whole),
            (Part::Forwarding, self.reaches_out()),
        ];
        let missing: Vec<Part> = parts.into_iter().filter(|(_, is_there)| !is_there).map(|(what, _)| what).collect();
        Ok(if missing.is_empty() { Seen::Whole } else { Seen::Damaged(missing) })
    }
}

/// Runs `work` on a thread of its own, which may change namespaces and ends; it comes home before, so that nothing is
/// held when this returns.
///
/// # Errors
/// No thread is to be had, or home cannot be found again; `Unsupported` where it may not be entered.
pub fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NetError> {
    let failed = |why: String| NetError::Failed(format!("a thread for namespaces: {why}"));
    let go = || {
        let home = File::open("/proc/thread-self/ns/net").map_err(|error| failed(error.to_string()))?;
        let come_home = || {
            net::enter(home.as_raw_fd())
                .map_err(|error| Refused::from(error).during("enter the daemon's own namespace"))
        };
        come_home()?;
        let done = work();
        come_home().map(|()| done)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("slots".to_owned()).spawn_scoped(scope, go);
        let thread = thread.map_err(|error| failed(error.to_string()))?;
        thread.join().unwrap_or_else(|_| Err(failed("it panicked".to_owned())))
    })
}
