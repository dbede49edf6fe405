//! What a virtual machine has to offer before a test of the agent makes sense in it.

use std::fs;

#[test]
fn cgroup2_is_mounted() {
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc is mounted");
    assert!(
        mounts
            .lines()
            .any(|line| line.split(' ').nth(2) == Some("cgroup2")),
        "{mounts}"
    );
}

#[test]
fn the_kernel_shows_its_btf() {
    let btf = fs::read("/sys/kernel/btf/vmlinux").expect("the kernel has BTF");
    assert_eq!(btf.get(..2), Some(&[0x9f, 0xeb][..]));
}

#[test]
fn the_loopback_interface_is_up() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("an address of lo");
    let address = listener.local_addr().expect("an address");
    std::net::TcpStream::connect(address).expect("lo is up");
}
