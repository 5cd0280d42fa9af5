//! Bytes to numbers and back, for the dtypes that bantam computes with: F32, F16 and BF16.
//!
//! Little-endian, no assumption about alignment, chunks in parallel. A value that is not finite is
//! an error that names the tensor and the place, in both directions.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use safetensors::Dtype;

use crate::error::{Error, Result};

/// Elements that one task takes: large enough to hide the cost of a task, small enough to spread.
const CHUNK: usize = 1 << 16;

/// Halves converted at a time through an aligned buffer on the stack.
const BLOCK: usize = 512;

/// The exponent bits of each format; a value with all of them set is NaN or infinite.
const F64_EXPONENT: u64 = 0x7ff0_0000_0000_0000;
const F32_EXPONENT: u32 = 0x7f80_0000;
const F16_EXPONENT: u16 = 0x7c00;
const BF16_EXPONENT: u16 = 0x7f80;

/// Converts `bytes`, the data of the tensor `name`, to f32.
///
/// # Errors
/// [`Error::NotComputable`] for a dtype other than F32, F16 and BF16,
/// [`Error::NonFiniteTensor`] for a value that is not finite, and [`Error::Bug`] for
/// bytes that are not a whole number of elements.
pub fn to_f32(dtype: Dtype, bytes: &[u8], name: &str) -> Result<Vec<f32>> {
    let width = float_width(dtype, name)?;
    if !bytes.len().is_multiple_of(width) {
        return Err(Error::Bug(format!(
            "tensor `{name}`: {} bytes are not a whole number of {dtype}",
            bytes.len()
        )));
    }
    let convert = match dtype {
        Dtype::F32 => decode_f32,
        Dtype::F16 => decode_f16,
        _ => decode_bf16,
    };
    let mut values = vec![0.0; bytes.len() / width];
    values
        .par_chunks_mut(CHUNK)
        .zip(bytes.par_chunks(CHUNK * width))
        .for_each(|(values, bytes)| convert(bytes, values));
    // A second pass, over the source: it is memory-bound like the first, and both loops vectorise.
    check_finite(dtype, bytes, name)?;
    Ok(values)
}

/// The data of the tensor `name` in the given dtype, rounded to nearest, ties to even.
///
/// # Errors
/// [`Error::NotComputable`] for a dtype other than F32, F16 and BF16, and
/// [`Error::NonFiniteTensor`] for a value that is not finite, or not any more once rounded.
pub fn from_f32(dtype: Dtype, values: &[f32], name: &str) -> Result<Vec<u8>> {
    let width = float_width(dtype, name)?;
    let convert = match dtype {
        Dtype::F32 => encode_f32,
        Dtype::F16 => encode_f16,
        _ => encode_bf16,
    };
    let mut bytes = vec![0; values.len() * width];
    bytes
        .par_chunks_mut(CHUNK * width)
        .zip(values.par_chunks(CHUNK))
        .for_each(|(bytes, values)| convert(values, bytes));
    check_finite(dtype, &bytes, name)?;
    Ok(bytes)
}

/// Checks that F64, F32, F16 or BF16 data are finite; data of any other dtype pass.
///
/// # Errors
/// [`Error::NonFiniteTensor`] with the first place.
pub fn check_finite(dtype: Dtype, bytes: &[u8], name: &str) -> Result<()> {
    match first_non_finite(dtype, bytes) {
        None => Ok(()),
        Some(index) => Err(Error::NonFiniteTensor { tensor: name.to_owned(), index: index as u64 }),
    }
}

/// Whether [`first_non_finite`] checks elements of this dtype at all: in every dtype that it checks, an
/// element with all bits set is not a number.
pub(super) fn is_checked(dtype: Dtype) -> bool {
    first_non_finite(dtype, &[0xff; 8]).is_some()
}

/// The index of the first element that is not finite.
pub(super) fn first_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<usize> {
    match dtype {
        Dtype::F64 => find(bytes, |b| u64::from_le_bytes(b) & F64_EXPONENT == F64_EXPONENT),
        Dtype::F32 => find(bytes, |b| u32::from_le_bytes(b) & F32_EXPONENT == F32_EXPONENT),
        Dtype::F16 => find(bytes, |b| u16::from_le_bytes(b) & F16_EXPONENT == F16_EXPONENT),
        Dtype::BF16 => find(bytes, |b| u16::from_le_bytes(b) & BF16_EXPONENT == BF16_EXPONENT),
        _ => None,
    }
}

/// The index of the first `N`-byte element for which `bad` holds.
fn find<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool + Sync) -> Option<usize> {
    let in_chunk = |(index, chunk): (usize, &[u8])| {
        let (elements, _) = chunk.as_chunks::<N>();
        // Without an early exit the loop vectorises; nearly every chunk is clean.
        if !elements.iter().fold(false, |any, &element| any | bad(element)) {
            return None;
        }
        elements.iter().position(|&element| bad(element)).map(|at| index * CHUNK + at)
    };
    if bytes.len() <= CHUNK * N {
        return in_chunk((0, bytes));
    }
    bytes.par_chunks(CHUNK * N).enumerate().filter_map(in_chunk).min()
}

/// Bytes per element of a dtype that bantam computes with; others are refused, naming the tensor.
pub(crate) fn float_width(dtype: Dtype, name: &str) -> Result<usize> {
    match dtype {
        Dtype::F32 => Ok(4),
        Dtype::F16 | Dtype::BF16 => Ok(2),
        _ => Err(Error::NotComputable { tensor: name.to_owned(), dtype }),
    }
}

fn decode_f32(bytes: &[u8], values: &mut [f32]) {
    let (elements, _) = bytes.as_chunks();
    for (value, &element) in values.iter_mut().zip(elements) {
        *value = f32::from_le_bytes(element);
    }
}

fn decode_bf16(bytes: &[u8], values: &mut [f32]) {
    let (elements, _) = bytes.as_chunks();
    for (value, &element) in values.iter_mut().zip(elements) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(element)) << 16);
    }
}

fn decode_f16(bytes: &[u8], values: &mut [f32]) {
    let (elements, _) = bytes.as_chunks();
    let mut block = [f16::ZERO; BLOCK];
    for (values, elements) in values.chunks_mut(BLOCK).zip(elements.chunks(BLOCK)) {
        let block = &mut block[..values.len()];
        for (half, &element) in block.iter_mut().zip(elements) {
            *half = f16::from_le_bytes(element);
        }
        block.convert_to_f32_slice(values);
    }
}

fn encode_f32(values: &[f32], bytes: &mut [u8]) {
    let (elements, _) = bytes.as_chunks_mut();
    for (element, value) in elements.iter_mut().zip(values) {
        *element = value.to_le_bytes();
    }
}

/// Rounds to nearest even by adding just under half a unit of the last place, and the odd bit.
///
/// A NaN may lose its payload or even turn into infinity this way: either is found, and refused.
fn encode_bf16(values: &[f32], bytes: &mut [u8]) {
    let (elements, _) = bytes.as_chunks_mut();
    for (element, value) in elements.iter_mut().zip(values) {
        let bits = value.to_bits();
        let sign = bits & 0x8000_0000;
        let magnitude = bits & 0x7fff_ffff;
        let odd = (magnitude >> 16) & 1;
        // Magnitudes from 0x7fff_8000 up, all of them NaN, would carry into the sign's place.
        let rounded = (magnitude + 0x7fff + odd).min(0x7fff_ffff) | sign;
        let [_, _, low, high] = rounded.to_le_bytes();
        *element = [low, high];
    }
}

fn encode_f16(values: &[f32], bytes: &mut [u8]) {
    let (elements, _) = bytes.as_chunks_mut();
    let mut block = [f16::ZERO; BLOCK];
    for (elements, values) in elements.chunks_mut(BLOCK).zip(values.chunks(BLOCK)) {
        let block = &mut block[..values.len()];
        block.convert_from_f32_slice(values);
        for (element, half) in elements.iter_mut().zip(block) {
            *element = half.to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn every_half_survives_both_ways() {
        for (dtype, exponent) in [(Dtype::F16, F16_EXPONENT), (Dtype::BF16, BF16_EXPONENT)] {
            let finite = (0..=u16::MAX).filter(|bits| bits & exponent != exponent);
            let bytes: Vec<u8> = finite.flat_map(u16::to_le_bytes).collect();
            let values = to_f32(dtype, &bytes, "w").unwrap();
            for (value, pair) in values.iter().zip(bytes.as_chunks::<2>().0) {
                let expected = match dtype {
                    Dtype::F16 => f16::from_le_bytes(*pair).to_f32(),
                    _ => bf16::from_le_bytes(*pair).to_f32(),
                };
                assert_eq!(value.to_bits(), expected.to_bits());
            }
            assert_eq!(from_f32(dtype, &values, "w").unwrap(), bytes);
        }
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        let values: Vec<f32> = (0..200_000_u32)
            .map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)))
            .chain([1.0 + f32::EPSILON, 1.003_906_3, 1.011_718_8, 2049.0, 2051.0, 6e-8, -0.0])
            .filter(|v| v.abs() < 65000.0)
            .collect();
        let halves = from_f32(Dtype::F16, &values, "w").unwrap();
        let brains = from_f32(Dtype::BF16, &values, "w").unwrap();
        for (i, &value) in values.iter().enumerate() {
            assert_eq!(halves[2 * i..][..2], f16::from_f32(value).to_le_bytes(), "{value:e}");
            assert_eq!(brains[2 * i..][..2], bf16::from_f32(value).to_le_bytes(), "{value:e}");
        }
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_named() {
        let mut values = vec![1.0_f32; 3 * CHUNK + 17];
        values[2 * CHUNK + 5] = f32::NAN;
        values[CHUNK + 9] = f32::NEG_INFINITY;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let error = to_f32(Dtype::F32, &bytes, "model.w").unwrap_err();
        assert!(matches!(
            error,
            Error::NonFiniteTensor { ref tensor, index } if tensor == "model.w" && index == CHUNK as u64 + 9
        ));
        for bad in [f32::NAN, f32::from_bits(0xffff_ffff), f32::from_bits(0x7f80_0001), 70000.0] {
            let error = from_f32(Dtype::F16, &[0.5, bad], "w").unwrap_err();
            assert!(matches!(error, Error::NonFiniteTensor { index: 1, .. }), "{bad}");
        }
        for bad in [f32::NAN, f32::from_bits(0xffff_ffff), f32::from_bits(0x7f80_0001), f32::MAX] {
            let error = from_f32(Dtype::BF16, &[0.5, bad], "w").unwrap_err();
            assert!(matches!(error, Error::NonFiniteTensor { index: 1, .. }), "{bad}");
        }
        let double = f64::INFINITY.to_le_bytes();
        assert!(check_finite(Dtype::F64, &double, "w").is_err());
        assert!(check_finite(Dtype::I64, &[0xff; 8], "w").is_ok());
    }

    #[test]
    fn other_dtypes_and_cut_elements_are_refused() {
        let error = to_f32(Dtype::U8, &[1, 2], "q").unwrap_err();
        assert!(matches!(error, Error::NotComputable { ref tensor, .. } if tensor == "q"));
        assert!(matches!(to_f32(Dtype::F32, &[0; 6], "w"), Err(Error::Bug(_))));
        assert_eq!(to_f32(Dtype::F16, &[], "w").unwrap(), Vec::<f32>::new());
    }
}
