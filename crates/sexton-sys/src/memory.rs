//! Memory straight from the kernel, for a program that has no allocator.
//!
//! A page of it costs nothing until it is first written, so a large table may be reserved for the worst case.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use crate::arch::{nr, syscall};
use crate::error::{Errno, SysError};

const PROT_READ_WRITE: usize = 3;
const MAP_SHARED: usize = 0x01;
const MAP_PRIVATE: usize = 0x02;
const MAP_ANONYMOUS: usize = 0x20;
/// Do not count the reservation against the overcommit limit: most of it is never touched.
const MAP_NORESERVE: usize = 0x4000;

mod sealed {
    use crate::error::Errno;

    /// What all zeroes are a value of, and which needs no dropping.
    pub trait Zeroed: Copy {}
    impl Zeroed for u8 {}
    impl Zeroed for u16 {}
    impl Zeroed for u32 {}
    impl Zeroed for u64 {}
    impl Zeroed for i32 {}
    impl Zeroed for i64 {}
    impl Zeroed for usize {}
    impl Zeroed for Errno {}
    /// No reference is null, so zeroes are `None`.
    impl<T> Zeroed for Option<&'static T> {}
    impl<A: Zeroed, B: Zeroed> Zeroed for (A, B) {}
}
pub(crate) use sealed::Zeroed;

/// A table of zeroes, given back when dropped.
#[derive(Debug)]
pub struct Table<T> {
    start: *mut T,
    len: usize,
    owns: PhantomData<T>,
}

// SAFETY: the mapping belongs to this value alone, as a `Vec`'s buffer does.
unsafe impl<T: Send> Send for Table<T> {}
// SAFETY: as above; shared access only reads.
unsafe impl<T: Sync> Sync for Table<T> {}

impl<T: Zeroed> Table<T> {
    /// Reserves `len` zeroes; a page is taken when it is first written.
    ///
    /// # Errors
    /// `ENOMEM` where the address space is used up or limited.
    pub fn new(len: usize) -> Result<Table<T>, SysError> {
        let start = map(bytes::<T>(len)?, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)?;
        Ok(Table { start: start.cast(), len, owns: PhantomData })
    }

    /// Like `new`, but a forked child writes into the same memory.
    pub(crate) fn shared_with_children(len: usize) -> Result<Table<T>, SysError> {
        let start = map(bytes::<T>(len)?, MAP_SHARED | MAP_ANONYMOUS)?;
        Ok(Table { start: start.cast(), len, owns: PhantomData })
    }
}

impl<T: Zeroed> Deref for Table<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` values lie there, zeroed by the kernel, aligned to a page, and owned by this value.
        unsafe { core::slice::from_raw_parts(self.start, self.len) }
    }
}

impl<T: Zeroed> DerefMut for Table<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed alone.
        unsafe { core::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; nothing borrows from it any more.
        let _unmapped = unsafe { syscall(nr::MUNMAP, [self.start as usize, self.len * size_of::<T>(), 0, 0, 0, 0]) };
    }
}

/// The size of a table in bytes.
fn bytes<T>(len: usize) -> Result<usize, SysError> {
    match len.checked_mul(size_of::<T>()) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        Some(_) | None => Err(SysError::of(&"mmap", Errno::EINVAL)),
    }
}

/// Maps `bytes` of zeroes.
fn map(bytes: usize, flags: usize) -> Result<*mut u8, SysError> {
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let ret = unsafe { syscall(nr::MMAP, [0, bytes, PROT_READ_WRITE, flags, usize::MAX, 0]) };
    ret.map(|address| address as *mut u8).map_err(|errno| SysError::of(&"mmap", errno))
}
