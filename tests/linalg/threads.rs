//! On the CPU the number of threads changes no bit.

use bantam::linalg::{self, Triangle};
use candle_core::Device;

use crate::cholesky::positive_definite;
use crate::matrix::Matrix;

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    // Large enough that faer goes parallel.
    let n = 420;
    let device = &Device::Cpu;
    let all = || {
        let a = Matrix::symmetric(2, n);
        let b = Matrix::random(3, n, n - 20);
        let eigh = linalg::eigh(&a.on(device), "a").unwrap();
        let svd = linalg::svd(&b.on(device), "b").unwrap();
        let q = linalg::orthonormalise(&b.on(device), "b").unwrap();
        let l = linalg::cholesky(&positive_definite(4, n).on(device), "c").unwrap();
        let x = linalg::solve_triangular(&l, &b.on(device), Triangle::Lower, false, "l").unwrap();
        let mut values = eigh.values;
        values.extend(linalg::eigvalsh(&a.on(device), "a").unwrap());
        values.extend(svd.s);
        values.extend(linalg::singular_values(&b.on(device), "b").unwrap());
        for t in [eigh.vectors, svd.u, svd.vt, q, l, x] {
            values.extend(Matrix::of(&t).values);
        }
        values.into_iter().map(f64::to_bits).collect::<Vec<_>>()
    };
    let on_threads = |threads: usize| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(all)
    };
    let one = on_threads(1);
    assert!(one == on_threads(2), "1 and 2 threads differ");
    assert!(one == on_threads(5), "1 and 5 threads differ");
}
