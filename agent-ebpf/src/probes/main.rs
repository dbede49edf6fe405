//! PROBES: where in the kernel things happen. Each function is named `<way>__<hook>`; the agent derives from that how it attaches.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(
    unreachable_pub,
    reason = "programs are found by their names, not by their paths"
)]
#![allow(
    non_snake_case,
    reason = "a double underscore separates the way from the hook, whose name may hold single ones"
)]
#![allow(
    unused_unsafe,
    reason = "macros that read a static have their own, and are used inside and outside of others"
)]

mod block;
mod call;
mod drop;
mod emit;
mod file;
mod kernel;
mod path;
mod process;
mod scope;
mod task;
mod tcp;
mod tracker;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses programs that can get here.
    loop {}
}

/// Helpers such as `bpf_probe_read_kernel` are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
