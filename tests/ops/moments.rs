//! Second moments of activations against f64, in pieces and at awkward sizes.

#![allow(clippy::float_cmp, reason = "some results are exact")]

use bantam::ops;

use super::numbers::*;

fn exact_gram(x: &[f32], n: usize) -> Vec<f64> {
    let mut g = vec![0.0; n * n];
    for row in x.chunks(n) {
        for i in 0..n {
            for j in 0..n {
                g[i * n + j] += f64::from(row[i]) * f64::from(row[j]);
            }
        }
    }
    g
}

/// Largest `|found - exact|` of two Gram matrices in units of `sqrt(exact_ii exact_jj)`.
fn gram_error(found: &[f64], exact: &[f64], n: usize) -> f64 {
    let mut worst = 0.0_f64;
    for i in 0..n {
        for j in 0..n {
            let unit = (exact[i * n + i] * exact[j * n + j]).sqrt();
            worst = worst.max((found[i * n + j] - exact[i * n + j]).abs() / unit);
        }
    }
    worst
}

#[test]
fn gram_is_its_definition_in_one_piece_and_in_chunks() {
    let mut random = Random(8);
    for (t, n) in [(1, 1), (3, 1), (1, 33), (31, 32), (129, 31), (2500, 33), (300, 129), (700, 97)]
    {
        let x = random.vec(t * n, 2.0);
        let exact = exact_gram(&x, n);
        let x = tensor(&x, &[t, n]);
        let whole = zeros(&[n, n]);
        ops::gram(&whole, &x).unwrap();
        ops::symmetrise(&whole).unwrap();
        let error = gram_error(&values_f64(&whole), &exact, n);
        assert!(error < 1e-6, "[{t}, {n}] in one piece: {error:e}");

        let chunked = zeros(&[n, n]);
        for first in (0..t).step_by(97) {
            ops::gram(&chunked, &x.narrow(0, first, 97.min(t - first)).unwrap()).unwrap();
        }
        ops::symmetrise(&chunked).unwrap();
        let error = gram_error(&values_f64(&chunked), &exact, n);
        assert!(error < 1e-6, "[{t}, {n}] in chunks: {error:e}");
    }
}

#[test]
fn gram_keeps_its_accuracy_over_many_rows_of_one_sign() {
    let (t, n) = (20_000, 3);
    let x: Vec<f32> = Random(9).vec(t * n, 0.5).iter().map(|v| v + 1.0).collect();
    let master = zeros(&[n, n]);
    ops::gram(&master, &tensor(&x, &[t, n])).unwrap();
    ops::symmetrise(&master).unwrap();
    let error = gram_error(&values_f64(&master), &exact_gram(&x, n), n);
    assert!(error < 2e-6, "{error:e}");
}

#[test]
fn gram_wider_than_a_panel_is_the_matrix_product() {
    let (t, n) = (19, 1100);
    let x = Random(10).vec(t * n, 1.0);
    let master = zeros(&[n, n]);
    ops::gram(&master, &tensor(&x, &[t, n])).unwrap();
    ops::symmetrise(&master).unwrap();
    let error = gram_error(&values_f64(&master), &exact_gram(&x, n), n);
    assert!(error < 1e-6, "{error:e}");
}

#[test]
fn gram_writes_the_lower_triangle_and_symmetrise_the_upper() {
    for n in [1, 2, 31, 32, 33, 65] {
        let x = Random(11).vec(5 * n, 1.0);
        let master = (zeros(&[n, n]) + 7.0).unwrap();
        ops::gram(&master, &tensor(&x, &[5, n])).unwrap();
        let half = values_f64(&master);
        ops::symmetrise(&master).unwrap();
        let full = values_f64(&master);
        for i in 0..n {
            for j in 0..n {
                if j > i {
                    assert_eq!(half[i * n + j], 7.0, "above the diagonal of {n}");
                    assert_eq!(full[i * n + j], half[j * n + i]);
                } else {
                    assert_ne!(half[i * n + j], 7.0, "below the diagonal of {n}");
                    assert_eq!(full[i * n + j], half[i * n + j]);
                }
            }
        }
    }
}

#[test]
fn gram_of_nothing_adds_nothing() {
    let master = (zeros(&[3, 3]) + 2.0).unwrap();
    ops::gram(&master, &tensor(&[], &[0, 3])).unwrap();
    assert_eq!(values_f64(&master), [2.0; 9]);
    let sums = (zeros(&[3]) + 2.0).unwrap();
    ops::column_sum(&sums, &tensor(&[], &[0, 3])).unwrap();
    assert_eq!(values_f64(&sums), [2.0; 3]);
}

#[test]
fn column_sums_are_exact_to_f64() {
    let mut random = Random(12);
    for (t, n) in [(1, 1), (3, 33), (255, 2), (257, 31), (1000, 129)] {
        let x = random.vec(t * n, 2.0);
        let (mut sums, mut squares) = (vec![5.0; n], vec![5.0; n]);
        for row in x.chunks(n) {
            sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v));
            squares.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v).powi(2));
        }
        let x = shifted(&tensor(&x, &[t, n]));
        let masters = [(zeros(&[n]) + 5.0).unwrap(), (zeros(&[n]) + 5.0).unwrap()];
        ops::column_sum(&masters[0], &x).unwrap();
        ops::column_squares(&masters[1], &x).unwrap();
        for (master, exact) in masters.iter().zip([sums, squares]) {
            for (found, exact) in values_f64(master).iter().zip(&exact) {
                let error = (found - exact).abs() / exact.abs().max(1.0);
                assert!(error < 1e-12, "[{t}, {n}]: {found} instead of {exact}");
            }
        }
    }
}

#[test]
fn row_dots_are_their_definition() {
    let mut random = Random(13);
    for (t, n) in [(1, 1), (3, 33), (131, 2), (9, 1024), (7, 1028), (5, 2051)] {
        let [a, b] = [(); 2].map(|()| random.vec(t * n, 2.0));
        let (mut exact, mut plain) = (Vec::new(), Vec::new());
        for (a, b) in a.chunks(n).zip(b.chunks(n)) {
            let terms = a.iter().zip(b);
            exact.push(terms.clone().map(|(&a, &b)| f64::from(a) * f64::from(b)).sum());
            plain.push(terms.fold(0.0, |sum, (a, b)| sum + a * b));
        }
        let (a, b) = (tensor(&a, &[t, n]), tensor(&b, &[t, n]));
        let y = ops::row_dots(&a, &b).unwrap();
        assert_eq!(y.dims(), [t]);
        assert_as_good_as_plain(&values(&y), &plain, &exact, &format!("[{t}, {n}]"));
        // On a device quads need alignment, and the order of a sum is another without.
        let moved = ops::row_dots(&shifted(&a), &shifted(&b)).unwrap();
        assert_as_good_as_plain(&values(&moved), &plain, &exact, &format!("[{t}, {n}] moved"));
    }
    let empty = ops::row_dots(&tensor(&[], &[3, 0]), &tensor(&[], &[3, 0])).unwrap();
    assert_eq!(values(&empty), [0.0; 3]);
    assert_eq!(ops::row_dots(&tensor(&[], &[0, 3]), &tensor(&[], &[0, 3])).unwrap().dims(), [0]);
}

#[test]
fn moments_do_not_depend_on_the_number_of_threads() {
    let x = tensor(&Random(13).vec(700 * 130, 2.0), &[700, 130]);
    assert_same_on_threads(|| {
        let (gram, sums) = (zeros(&[130, 130]), zeros(&[130]));
        ops::gram(&gram, &x).unwrap();
        ops::column_sum(&sums, &x).unwrap();
        [gram, sums].iter().flat_map(values_f64).map(f64::to_bits).collect::<Vec<u64>>()
    });
}

#[test]
fn moments_refuse_what_does_not_fit() {
    let x = tensor(&[1.0; 6], &[2, 3]);
    assert_refused(ops::gram(&zeros(&[2, 2]), &x), &["gram", "master"]);
    assert_refused(ops::gram(&tensor(&[0.0; 9], &[3, 3]), &x), &["master is F32"]);
    assert_refused(ops::gram(&zeros(&[2, 2]), &x.t().unwrap()), &["x is not contiguous"]);
    assert_refused(ops::gram(&zeros(&[3, 3]), &x.i_flat()), &["[t, n]"]);
    assert_refused(ops::symmetrise(&zeros(&[2, 3])), &["symmetrise"]);
    assert_refused(ops::column_sum(&zeros(&[2]), &x), &["column_sum", "master"]);
    assert_refused(ops::row_dots(&x, &tensor(&[1.0; 6], &[3, 2])), &["row_dots", "b"]);
    assert_refused(ops::row_dots(&x.i_flat(), &x), &["row_dots", "[t, n]"]);
}
