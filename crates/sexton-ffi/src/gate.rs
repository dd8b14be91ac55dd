//! The gate: one admission for all operations of a program, and one truth about when the last is over.

use std::ffi::{CString, c_char, c_int, c_void};
use std::time::Duration;

use sexton_core::gate::{EnterError, Gate, Inside, OwnedPermit};

use crate::{Code, Refused, User, borrowed, guard, guard_quietly, put, take_back, text};

/// A gate.
#[allow(non_camel_case_types, reason = "the header's name")]
pub struct sexton_gate(Gate);

/// One admitted operation.
#[allow(non_camel_case_types, reason = "the header's name")]
pub struct sexton_permit(#[allow(dead_code, reason = "held until it is dropped")] OwnedPermit);

/// An operation that is inside.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(non_camel_case_types, reason = "the header's name")]
pub struct sexton_inside {
    /// What it is; valid during the call.
    pub kind: *const c_char,
    /// How long it has been inside.
    pub age_ms: u64,
}

/// Who is told of each operation inside.
#[allow(non_camel_case_types, reason = "the header's name")]
pub type sexton_on_inside = Option<unsafe extern "C" fn(inside: *const sexton_inside, user: *mut c_void)>;

/// Who is told once that a gate is closed and empty.
#[allow(non_camel_case_types, reason = "the header's name")]
pub type sexton_on_idle = Option<unsafe extern "C" fn(user: *mut c_void)>;

/// An open gate with nothing inside; null only where memory fails.
#[unsafe(no_mangle)]
pub extern "C" fn sexton_gate_new() -> *mut sexton_gate {
    let mut made = std::ptr::null_mut();
    guard_quietly(|| made = Box::into_raw(Box::new(sexton_gate(Gate::default()))));
    made
}

/// Admits one operation.
///
/// # Safety
/// `gate` is one, `kind` is a text, `out` is a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_gate_enter(
    gate: *const sexton_gate,
    kind: *const c_char,
    out: *mut *mut sexton_permit,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let gate = &unsafe { borrowed(gate) }?.0;
        // SAFETY: the caller's promise.
        let kind = unsafe { text(kind) }?;
        let kind = gate.kind(kind).map_err(|error| Refused::because(Code::BadArgument, &error))?;
        let permit = gate.enter_owned(kind).map_err(|error| {
            let code = match error {
                EnterError::Draining => Code::Draining,
                EnterError::Full => Code::Failed,
            };
            Refused::because(code, &error)
        })?;
        // SAFETY: the caller's promise.
        unsafe { put(out, Box::into_raw(Box::new(sexton_permit(permit)))) }
    })
}

/// Ends an operation.
///
/// # Safety
/// `permit` is null, or one that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_permit_leave(permit: *mut sexton_permit) {
    // SAFETY: the caller's promise.
    guard_quietly(|| drop(unsafe { take_back(permit) }));
}

/// Closes the gate, for good.
///
/// # Safety
/// `gate` is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_gate_begin_drain(gate: *const sexton_gate) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { borrowed(gate) }?.0.begin_drain();
        Ok(())
    })
}

/// 1 where nothing is admitted any more, 0 where the gate is open.
///
/// # Safety
/// `gate` is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_gate_is_draining(gate: *const sexton_gate) -> c_int {
    // SAFETY: the caller's promise.
    answer(|| Ok(unsafe { borrowed(gate) }?.0.is_draining()))
}

/// 1 where it is closed and empty, and so stays.
///
/// # Safety
/// `gate` is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_gate_is_idle(gate: *const sexton_gate) -> c_int {
    // SAFETY: the caller's promise.
    answer(|| Ok(unsafe { borrowed(gate) }?.0.is_idle()))
}

/// Yes or no as 1 or 0, or a refusal below.
fn answer(inside: impl FnOnce() -> Result<bool, Refused>) -> c_int {
    let mut yes = false;
    let code = guard(|| {
        yes = inside()?;
        Ok(())
    });
    if code == Code::Ok as c_int { yes.into() } else { code }
}

/// Tells of each operation inside, the oldest first; how many, or below 0.
///
/// # Safety
/// `gate` is one, `on_inside` may be called until this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_gate_in_flight(
    gate: *const sexton_gate,
    on_inside: sexton_on_inside,
    user: *mut c_void,
) -> c_int {
    let mut count = 0;
    let code = guard(|| {
        // SAFETY: the caller's promise.
        let all = unsafe { borrowed(gate) }?.0.in_flight();
        count = c_int::try_from(all.len()).unwrap_or(c_int::MAX);
        let user = User(user);
        all.iter().for_each(|inside| tell(inside, on_inside, &user));
        Ok(())
    });
    if code == Code::Ok as c_int { count } else { code }
}

fn tell(inside: &Inside, on_inside: sexton_on_inside, user: &User) {
    let Some(on_inside) = on_inside else { return };
    let kind = CString::new(inside.kind.as_str()).unwrap_or_default();
    let age_ms = u64::try_from(inside.age.as_millis()).unwrap_or(u64::MAX);
    let inside = sexton_inside { kind: kind.as_ptr(), age_ms };
    // SAFETY: the caller's promise; both live until the call returns.
    unsafe { on_inside(&raw const inside, user.pointer()) };
}

/// Waits until the gate is closed and empty; below 0 for `timeout_ms` waits for as long as it takes.
///
/// # Safety
/// `gate` is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_gate_wait_idle(gate: *const sexton_gate, timeout_ms: i64) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let gate = &unsafe { borrowed(gate) }?.0;
        let limit = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
        let inside = |left: Vec<Inside>| Refused(Code::NothingYet, format!("{} operations are inside", left.len()));
        gate.wait_idle(limit).map_err(inside)
    })
}

/// Calls `on_idle` once, when the gate is closed and empty.
///
/// # Safety
/// `gate` is one; `on_idle` may be called on any thread that leaves.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_gate_when_idle(
    gate: *const sexton_gate,
    on_idle: sexton_on_idle,
    user: *mut c_void,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let gate = &unsafe { borrowed(gate) }?.0;
        let on_idle = on_idle.ok_or_else(Refused::null)?;
        let user = User(user);
        // SAFETY: the caller's promise.
        gate.when_idle(move || unsafe { on_idle(user.pointer()) });
        Ok(())
    })
}

/// Gives back a gate; permits of it stay good.
///
/// # Safety
/// `gate` is null, or one that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_gate_free(gate: *mut sexton_gate) {
    // SAFETY: the caller's promise.
    guard_quietly(|| drop(unsafe { take_back(gate) }));
}
