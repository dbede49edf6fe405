//! Reads of the kernel's structs that work on every kernel: offsets come from the agent, memory through helpers that cannot fault.

use core::{arch::asm, ffi::c_void, mem::MaybeUninit};

use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_current_task_btf, bpf_probe_read_kernel,
    bpf_probe_read_kernel_str,
};
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
impl<const N: usize> Plain for [u64; N] {}

/// Reads a `T` at `base + offset`; zero where the offset is missing or the memory unreadable. Not an `Option`: each branch on
/// one would double what the verifier has to walk.
#[inline(always)]
pub fn read<T: Plain>(base: Ptr, offset: u32) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: room for a `T`, written in any case, and zeros are a value of every `Plain` type.
    unsafe {
        if offset == MISSING {
            value = MaybeUninit::zeroed();
        } else {
            read_to(value.as_mut_ptr(), base, offset);
        }
        value.assume_init()
    }
}

/// Reads a `T` at `base + offset` to where it is wanted. Zero where the memory is unreadable; where the offset is missing, `to` is left
/// as it is.
///
/// # Safety
/// `to` has room for it.
#[inline(always)]
pub unsafe fn read_to<T: Plain>(to: *mut T, base: Ptr, offset: u32) {
    if offset != MISSING {
        // SAFETY: the helper writes `size_of::<T>()` bytes in any case: zeros when it fails. It checks the source address itself.
        unsafe { bpf_probe_read_kernel(to.cast(), size_of::<T>() as u32, at(base, offset)) };
    }
}

/// Fills what is at an address with zeros. The compiler's own way of doing that is a call of a loop over bytes, which takes as long as all
/// else about an event.
///
/// # Safety
/// `to` is valid and aligned to 8 bytes.
#[inline(always)]
pub unsafe fn zero<T>(to: *mut T) {
    const { assert!(size_of::<T>() % 8 == 0 && align_of::<T>() == 8) };
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: the caller's promise. Volatile, so that it does not become that call.
        unsafe { to.cast::<u64>().add(word).write_volatile(0) };
    }
}

/// Types that one instruction loads.
pub trait Word: Plain {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for i32 {}
impl Word for u64 {}

/// A struct of the kernel's. In programs of which the verifier knows the types, members are loaded: one instruction, where a helper
/// costs a call that guards against faults. What cannot be read is 0 either way.
#[derive(Clone, Copy)]
pub struct Object {
    address: Ptr,
    /// The verifier knows what is there. A constant for it and mostly for the compiler, so that only one way of reading is left.
    typed: bool,
}

impl Object {
    /// One of which the verifier may know the type.
    #[inline(always)]
    pub fn new(address: Ptr, typed: bool) -> Self {
        Self { address, typed }
    }

    /// The current task. `tracing`: in a program whose types the verifier knows.
    #[inline(always)]
    pub fn current(tracing: bool) -> Self {
        if tracing && offset!(helper_current_task_btf) != MISSING {
            // SAFETY: this helper has no preconditions.
            return Self::new(unsafe { bpf_get_current_task_btf() } as Ptr, true);
        }
        // SAFETY: as above.
        Self::new(unsafe { bpf_get_current_task() } as Ptr, false)
    }

    /// Whether the verifier knows its type.
    #[inline(always)]
    pub fn is_typed(self) -> bool {
        self.typed
    }

    /// Where it is.
    #[inline(always)]
    pub fn address(self) -> Ptr {
        self.address
    }

    /// Its member at that offset.
    #[inline(always)]
    pub fn read<T: Word>(self, offset: u32) -> T {
        if self.typed && offset != MISSING {
            // SAFETY: the verifier knows the type, refuses what is no member, and has faults read as 0.
            return unsafe { at(self.address, offset).cast::<T>().read_volatile() };
        }
        read(self.address, offset)
    }

    /// Copies its member of 16 bytes at that offset.
    ///
    /// # Safety
    /// `to` is valid and aligned to 8 bytes.
    #[inline(always)]
    pub unsafe fn copy_16(self, to: *mut [u8; 16], offset: u32) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.typed && offset != MISSING {
                let to = to.cast::<u64>();
                to.write_volatile(self.read(offset));
                to.add(1).write_volatile(self.read(offset + 8));
            } else {
                read_to(to, self.address, offset);
            }
        }
    }

    /// The struct that its member at that offset points to.
    #[inline(always)]
    pub fn follow(self, offset: u32) -> Self {
        if self.typed && offset != MISSING {
            // SAFETY: as in `read`.
            let address = unsafe { at(self.address, offset).cast::<Ptr>().read_volatile() };
            return Self::new(address, true);
        }
        Self::new(read(self.address, offset), false)
    }
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

/// Adds so many, atomically.
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
