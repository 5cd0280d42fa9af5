//! What is decomposed: nothing, views, and what is refused.

use bantam::error::Error;
use bantam::linalg::{self, Triangle};
use candle_core::{DType, Device, IndexOp, Tensor};

use crate::cholesky::positive_definite;
use crate::matrix::Matrix;

pub(crate) fn nothing_decomposes_into_nothing(device: &Device) {
    let empty = |m: usize, n: usize| Tensor::zeros((m, n), DType::F64, device).unwrap();
    let found = linalg::eigh(&empty(0, 0), "nothing").unwrap();
    assert!(found.values.is_empty());
    assert_eq!(found.vectors.dims(), [0, 0]);
    assert!(linalg::eigvalsh(&empty(0, 0), "nothing").unwrap().is_empty());
    for (m, n) in [(0, 0), (0, 4), (4, 0)] {
        let found = linalg::svd(&empty(m, n), "nothing").unwrap();
        assert_eq!((found.u.dims(), found.vt.dims()), ([m, 0].as_slice(), [0, n].as_slice()));
        assert!(found.s.is_empty());
    }
    assert!(linalg::singular_values(&empty(0, 4), "nothing").unwrap().is_empty());
    assert_eq!(linalg::orthonormalise(&empty(5, 0), "nothing").unwrap().dims(), [5, 0]);
    assert_eq!(linalg::cholesky(&empty(0, 0), "nothing").unwrap().dims(), [0, 0]);
    for (n, k) in [(0, 0), (0, 3), (2, 0)] {
        let (t, b) = (empty(n, n), empty(n, k));
        let x = linalg::solve_triangular(&t, &b, Triangle::Lower, false, "nothing").unwrap();
        assert_eq!(x.dims(), [n, k]);
    }
}

pub(crate) fn results_are_where_the_argument_is(device: &Device) {
    let a = Matrix::diagonal(&[3.0, 2.0, 1.0]).on(device);
    let svd = linalg::svd(&a, "a").unwrap();
    let results = [
        linalg::eigh(&a, "a").unwrap().vectors,
        svd.u,
        svd.vt,
        linalg::orthonormalise(&a, "a").unwrap(),
        linalg::cholesky(&a, "a").unwrap(),
        linalg::solve_triangular(&a, &a, Triangle::Upper, true, "a").unwrap(),
    ];
    for (i, result) in results.iter().enumerate() {
        assert!(result.device().same_device(device), "result {i}");
        assert_eq!(result.dtype(), DType::F64, "result {i}");
    }
}

pub(crate) fn f32_is_computed_in_f64(device: &Device) {
    let a = positive_definite(3, 20).on(device).to_dtype(DType::F32).unwrap();
    let same = a.to_dtype(DType::F64).unwrap();
    let (found, exact) = (linalg::eigh(&a, "f32").unwrap(), linalg::eigh(&same, "f64").unwrap());
    assert_eq!(found.values, exact.values);
    assert_eq!(Matrix::of(&found.vectors), Matrix::of(&exact.vectors));
    let both = |of: &dyn Fn(&Tensor) -> Tensor| {
        assert_eq!(Matrix::of(&of(&a)), Matrix::of(&of(&same)));
    };
    both(&|t| linalg::orthonormalise(t, "a").unwrap());
    both(&|t| linalg::cholesky(t, "a").unwrap());
    both(&|t| linalg::solve_triangular(t, t, Triangle::Lower, false, "a").unwrap());
}

pub(crate) fn views_are_decomposed_as_what_they_show(device: &Device) {
    let a = Matrix::random(8, 24, 17);
    let view = a.t().on(device).t().unwrap();
    assert!(!view.is_contiguous());
    let plain = linalg::svd(&a.on(device), "plain").unwrap();
    assert_eq!(linalg::svd(&view, "view").unwrap().s, plain.s);
    let q = linalg::orthonormalise(&view, "view").unwrap();
    assert_eq!(
        Matrix::of(&q),
        Matrix::of(&linalg::orthonormalise(&a.on(device), "plain").unwrap())
    );
    let part = a.on(device).narrow(0, 5, 17).unwrap();
    let copy = Matrix::of(&part.force_contiguous().unwrap()).on(device);
    assert_eq!(linalg::eigvalsh(&part, "part").unwrap(), linalg::eigvalsh(&copy, "copy").unwrap());
}

pub(crate) fn what_is_not_finite_is_refused_by_name(device: &Device) {
    let is_refused = |found: Option<Error>, value: f64| match found {
        Some(Error::NonFinite { what, detail }) => {
            assert_eq!(what, "model.layers.3");
            assert_eq!(detail, format!("row 4, column 2: {value}"));
        }
        other => panic!("{other:?}"),
    };
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut a = Matrix::symmetric(1, 6);
        a.values[4 * 6 + 2] = value;
        let a = a.on(device);
        let subject = "model.layers.3";
        is_refused(linalg::eigh(&a, subject).err(), value);
        is_refused(linalg::eigvalsh(&a, subject).err(), value);
        is_refused(linalg::svd(&a, subject).err(), value);
        is_refused(linalg::singular_values(&a, subject).err(), value);
        is_refused(linalg::orthonormalise(&a, subject).err(), value);
        is_refused(linalg::cholesky(&a, subject).err(), value);
        let one = Matrix::diagonal(&[1.0; 6]).on(device);
        let solve = |t, b| linalg::solve_triangular(t, b, Triangle::Lower, true, subject).err();
        is_refused(solve(&a, &one), value);
        is_refused(solve(&one, &a), value);
    }
}

pub(crate) fn what_is_too_large_for_a_sum_is_not_refused(device: &Device) {
    let large = 2.0_f64.powi(1023);
    let t = Matrix::new(2, 2, vec![large, f64::NAN, large, large]).on(device);
    let b = t.narrow(1, 0, 1).unwrap();
    let x = linalg::solve_triangular(&t, &b, Triangle::Lower, false, "large").unwrap();
    assert_eq!(Matrix::of(&x).values, [1.0, 0.0]);
}

pub(crate) fn what_does_not_fit_is_refused(device: &Device) {
    let refusal = |found: Option<Error>, part: &str| match found {
        Some(Error::Bug(message)) => {
            assert!(message.contains("layer 7") && message.contains(part), "{message}");
        }
        other => panic!("{other:?}"),
    };
    let a = Matrix::random(1, 3, 4).on(device);
    let flat = a.flatten_all().unwrap();
    let wide = a.to_dtype(DType::BF16).unwrap();
    refusal(linalg::eigh(&a, "layer 7").err(), "not square");
    refusal(linalg::eigvalsh(&flat, "layer 7").err(), "expected a matrix");
    refusal(linalg::svd(&flat, "layer 7").err(), "expected a matrix");
    refusal(linalg::svd(&wide, "layer 7").err(), "BF16");
    refusal(linalg::orthonormalise(&a, "layer 7").err(), "cannot be orthonormal");
    refusal(linalg::cholesky(&a, "layer 7").err(), "not square");
    refusal(
        linalg::cholesky(&a.i((.., ..3)).unwrap().to_dtype(DType::BF16).unwrap(), "layer 7").err(),
        "BF16",
    );

    let solve = |t: &Matrix, b: &Matrix| {
        let (t, b) = (t.on(device), b.on(device));
        linalg::solve_triangular(&t, &b, Triangle::Lower, false, "layer 7").err()
    };
    let (square, other) = (Matrix::diagonal(&[1.0, 0.0, 2.0]), Matrix::random(1, 3, 4));
    refusal(solve(&other, &other), "not square");
    refusal(solve(&square, &other.t()), "order 3 against 4 rows");
    refusal(solve(&square, &other), "entry 1 of the diagonal is zero");
}
