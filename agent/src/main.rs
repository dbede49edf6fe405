fn main() {
    let kernel = dinle::kernel::Kernel::load(&Default::default());
    match kernel {
        Ok(mut k) => println!("{:#?}", k.programs.status()),
        Err(e) => println!("{e}"),
    }
}
