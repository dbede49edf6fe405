//! Reads of the kernel's structs that work on every kernel: offsets come from the agent, memory through helpers that cannot fault.

use core::{arch::asm, ffi::c_void, mem::MaybeUninit};

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str};
use dinle_ebpf::offsets::{MISSING, Offsets, Syscalls};

/// An address in the kernel.
pub type Ptr = *const c_void;

/// Set by the agent before it loads the programs.
#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = Offsets::MISSING;

/// Set by the agent before it loads the programs.
#[unsafe(no_mangle)]
pub static SYSCALLS: Syscalls = Syscalls::MISSING;

/// The number of the system call of that name; as [`offset!`].
macro_rules! syscall {
    ($name:ident) => {
        // SAFETY: a static is valid for reads.
        unsafe { (&raw const $crate::kernel::SYSCALLS.$name).read_volatile() }
    };
}
pub(crate) use syscall;

/// The offset of that name. Volatile, so that the compiler does not take the initial value for the final one.
macro_rules! offset {
    ($name:ident) => {
        // SAFETY: a static is valid for reads.
        unsafe { (&raw const $crate::kernel::OFFSETS.$name).read_volatile() }
    };
}
pub(crate) use offset;

/// What [`read`] can read: types for which all bits zero are a value.
pub trait Plain: Copy {}
impl Plain for Ptr {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for i32 {}
impl Plain for u64 {}
impl<const N: usize> Plain for [u8; N] {}

/// Reads a `T` at `base + offset`; zero where the offset is missing or the memory unreadable. Not an `Option`: each branch on
/// one would double what the verifier has to walk.
#[inline(always)]
pub fn read<T: Plain>(base: Ptr, offset: u32) -> T {
    let mut value = MaybeUninit::<T>::zeroed();
    if offset != MISSING {
        // SAFETY: the helper writes `size_of::<T>()` bytes in any case: zeros when it fails. It checks the source address itself.
        unsafe {
            bpf_probe_read_kernel(
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
                at(base, offset),
            )
        };
    }
    // SAFETY: written just now, and zeros are a value of every `Plain` type.
    unsafe { value.assume_init() }
}

/// The address `base + offset`.
#[inline(always)]
pub fn at(base: Ptr, offset: u32) -> Ptr {
    base.cast::<u8>().wrapping_add(offset as usize).cast()
}

/// Copies a string of at most `len` bytes, its NUL included, to `to`; the number of bytes copied, its NUL included, or 0.
///
/// # Safety
/// `to` is valid for `len` bytes.
#[inline(always)]
pub unsafe fn read_str(to: *mut u8, len: u32, from: Ptr) -> usize {
    // SAFETY: the caller's promise; the helper checks the source address itself.
    let copied = unsafe { bpf_probe_read_kernel_str(to.cast(), len, from) };
    if copied < 0 { 0 } else { copied as usize }
}

/// Adds one, atomically: on kernels that run tracepoints preemptibly another program may come between on the same CPU.
///
/// # Safety
/// `counter` points into an element of a map.
#[inline(always)]
pub unsafe fn increment(counter: *mut u64) {
    // SAFETY: the caller's promise.
    unsafe { add(counter, 1) };
}

/// Adds so many, likewise.
///
/// # Safety
/// `counter` points into an element of a map.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, more: u64) {
    // SAFETY: the caller's promise. rustc has no atomic operations for this target; the instruction exists since the first BPF.
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {more}", counter = in(reg) counter, more = in(reg) more)
    };
}
