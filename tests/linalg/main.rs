//! Linear algebra by the identities that define it, in f64, at awkward sizes.
//!
//! One suite for both devices: every case takes the device, and runs on the CPU and, in a build
//! with `cuda`, on the first GPU. `agreement` compares the two; `threads` is about the CPU alone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(feature = "cuda")]
mod agreement;
mod arguments;
mod cholesky;
mod eigh;
mod matrix;
mod qr;
mod svd;
mod threads;
mod triangular;
mod truncated;

use candle_core::Device;

fn cpu() -> Device {
    Device::Cpu
}

/// The GPU, one for all cases, or the emulated one.
#[cfg(feature = "cuda")]
fn gpu() -> Device {
    static GPU: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    GPU.get_or_init(|| match bantam::ops::gpu() {
        Ok(device) => device,
        Err(e) => panic!(
            "a build with `cuda` is tested on a GPU, or with `scripts/emulate.sh cargo test \
             --features cuda` on an emulated one: {e}"
        ),
    })
    .clone()
}

/// Makes a test of every case, on every device.
macro_rules! suite {
    ($($module:ident { $($case:ident),* $(,)? })*) => {
        mod on_the_cpu {
            $($(#[test] fn $case() { crate::$module::$case(&crate::cpu()); })*)*
        }
        #[cfg(feature = "cuda")]
        mod on_a_gpu {
            $($(#[test] fn $case() { crate::$module::$case(&crate::gpu()); })*)*
        }
    };
}

suite! {
    eigh {
        eigh_decomposes_symmetric_matrices,
        eigh_finds_a_known_spectrum,
        eigh_copes_with_equal_zero_and_negative_eigenvalues,
        eigh_tells_clusters_apart,
        eigh_of_a_rank_deficient_gram_matrix_has_its_rank,
        eigh_spans_many_orders_of_magnitude,
        eigh_reads_only_the_lower_triangle,
    }
    svd {
        svd_reconstructs_tall_wide_and_square_matrices,
        svd_of_f32_is_that_of_the_same_numbers_in_f64,
        svd_finds_known_values_and_rank,
        svd_spans_many_orders_of_magnitude,
        truncated_svd_errs_by_the_tail_of_the_spectrum,
    }
    truncated {
        truncated_svd_finds_the_leading_values_and_vectors,
        truncated_svd_decomposes_all_where_that_is_asked_for,
        truncated_svd_falls_back_where_it_has_not_settled,
        truncated_svd_of_a_low_rank_matrix_has_its_rank,
        truncated_svd_refuses_what_it_cannot_decompose,
        gaussian_is_normal_and_the_same_everywhere,
    }
    qr {
        orthonormalise_gives_a_basis_of_the_columns,
        orthonormalise_is_nested,
        orthonormalise_completes_dependent_columns,
    }
    cholesky {
        cholesky_factors_positive_definite_matrices,
        cholesky_finds_a_known_factor,
        cholesky_reads_only_the_lower_triangle,
        cholesky_names_the_minor_that_is_not_positive,
    }
    triangular {
        solve_triangular_solves_all_four_systems,
        solve_triangular_reads_only_its_triangle,
        solve_triangular_whitens_with_a_cholesky_factor,
    }
    arguments {
        nothing_decomposes_into_nothing,
        results_are_where_the_argument_is,
        f32_is_computed_in_f64,
        views_are_decomposed_as_what_they_show,
        what_is_not_finite_is_refused_by_name,
        what_is_too_large_for_a_sum_is_not_refused,
        what_does_not_fit_is_refused,
    }
}
