//! Prints the folder of the emulated CUDA libraries, for `CUDA_LIB_PATH`.
fn main() {
    println!("{}", kernels_emu::DRIVER);
}
