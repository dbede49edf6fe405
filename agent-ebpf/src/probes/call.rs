//! A call of a kernel function, at its entry or its return, however the program is attached.

use dinle_ebpf::offsets::MISSING;

use crate::kernel::{Object, Ptr, offset, read};

/// Makes the programs of a function's entry, one for each way: `entry!(fentry__f, kprobe__f => body)`, where `body` takes a [`Call`].
macro_rules! entry {
    ($fentry:ident, $kprobe:ident => $body:expr) => {
        #[aya_ebpf::macros::fentry]
        pub fn $fentry(ctx: aya_ebpf::programs::FEntryContext) -> i32 {
            ($body)($crate::call::Call::trampoline(
                aya_ebpf::EbpfContext::as_ptr(&ctx),
            ))
        }

        #[aya_ebpf::macros::kprobe]
        pub fn $kprobe(ctx: aya_ebpf::programs::ProbeContext) -> u32 {
            ($body)($crate::call::Call::registers(
                aya_ebpf::EbpfContext::as_ptr(&ctx),
            )) as u32
        }
    };
}
pub(crate) use entry;

/// The same of a function's return: `exit!(fexit__f, kretprobe__f => body)`. At the return only `fexit` has arguments.
macro_rules! exit {
    ($fexit:ident, $kretprobe:ident => $body:expr) => {
        #[aya_ebpf::macros::fexit]
        pub fn $fexit(ctx: aya_ebpf::programs::FExitContext) -> i32 {
            ($body)($crate::call::Call::trampoline(
                aya_ebpf::EbpfContext::as_ptr(&ctx),
            ))
        }

        #[aya_ebpf::macros::kretprobe]
        pub fn $kretprobe(ctx: aya_ebpf::programs::RetProbeContext) -> u32 {
            ($body)($crate::call::Call::registers(
                aya_ebpf::EbpfContext::as_ptr(&ctx),
            )) as u32
        }
    };
}
pub(crate) use exit;

/// A call.
#[derive(Clone, Copy)]
pub struct Call {
    ctx: Ptr,
    registers: bool,
}

impl Call {
    /// Of a program with a row of arguments, behind which at a return is the value.
    #[inline(always)]
    pub fn trampoline(ctx: *mut core::ffi::c_void) -> Self {
        Self {
            ctx,
            registers: false,
        }
    }

    /// Of a program with the CPU's registers.
    #[inline(always)]
    pub fn registers(ctx: *mut core::ffi::c_void) -> Self {
        Self {
            ctx,
            registers: true,
        }
    }

    /// The current task, as the program can read it.
    #[inline(always)]
    pub fn task(self) -> Object {
        Object::current(!self.registers)
    }

    /// The argument at a position that the kernel's types tell ([`MISSING`]: 0).
    #[inline(always)]
    pub fn arg(self, position: u32) -> u64 {
        if position == MISSING {
            return 0;
        }
        let Self { ctx, registers } = self;
        if !registers {
            return read(ctx, position * 8);
        }
        argument(Object::new(ctx, false), position)
    }

    /// The value that the function returns. `params` is how many parameters it has.
    #[inline(always)]
    pub fn value(self, params: u32) -> u64 {
        let Self { ctx, registers } = self;
        if registers {
            read(ctx, offset!(regs_return))
        } else if params == MISSING {
            0
        } else {
            read(ctx, params * 8)
        }
    }
}

/// An argument of a function or a system call, from the registers at its entry. System calls pass the fourth in another register on
/// x86-64: [`syscall_argument`].
#[inline(always)]
pub fn argument(regs: Object, position: u32) -> u64 {
    match position {
        0 => regs.read(offset!(regs_0)),
        1 => regs.read(offset!(regs_1)),
        2 => regs.read(offset!(regs_2)),
        3 => regs.read(offset!(regs_3)),
        4 => regs.read(offset!(regs_4)),
        5 => regs.read(offset!(regs_5)),
        _ => 0,
    }
}

/// An argument of a system call, from the registers at its entry or its return.
#[inline(always)]
pub fn syscall_argument(regs: Object, position: u32) -> u64 {
    match position {
        0 => regs.read(offset!(syscall_0)),
        3 => regs.read(offset!(syscall_3)),
        other => argument(regs, other),
    }
}
