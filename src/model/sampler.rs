//! The next token from logits: the likeliest, or drawn by temperature and nucleus.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::random::split_mix;

/// Draws tokens; the same seed draws the same.
#[derive(Debug, Clone)]
pub struct Sampler {
    temperature: f64,
    top_p: f64,
    state: u64,
}

impl Sampler {
    /// `temperature` 0 is greedy; `top_p` 1 draws from all tokens.
    pub fn new(temperature: f64, top_p: f64, seed: u64) -> Self {
        Self { temperature, top_p, state: seed }
    }

    /// A token for `logits [vocab]` f32.
    ///
    /// # Errors
    /// [`Error::NonFinite`] where a logit is not finite.
    pub fn next(&mut self, logits: &Tensor) -> Result<u32> {
        let logits = logits.to_vec1::<f32>()?;
        if let Some(token) = logits.iter().position(|l| !l.is_finite()) {
            let detail = format!("token {token}");
            return Err(Error::NonFinite { what: "the next token's logits".into(), detail });
        }
        // Of equal logits the lower id comes first.
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let Some(&likeliest) = order.first() else {
            return Err(Error::Bug("logits of no token".into()));
        };
        let token = match self.temperature > 0.0 {
            true => self.draw(&order, &logits),
            false => likeliest,
        };
        u32::try_from(token).map_err(|_| Error::Bug(format!("token {token} is no id")))
    }

    fn draw(&mut self, order: &[usize], logits: &[f32]) -> usize {
        let max = f64::from(logits[order[0]]);
        let weight = |&token: &usize| ((f64::from(logits[token]) - max) / self.temperature).exp();
        let weights: Vec<f64> = order.iter().map(weight).collect();
        let nucleus_mass = self.top_p * weights.iter().sum::<f64>();
        let mut mass = 0.0;
        let inside = |w: &&f64| {
            let wanted = mass < nucleus_mass;
            mass += **w;
            wanted
        };
        let nucleus: Vec<f64> = weights.iter().take_while(inside).copied().collect();
        // 53 random bits, the digits of an f64.
        let uniform = (split_mix(&mut self.state) >> 11) as f64 / (1_u64 << 53) as f64;
        let mut left = uniform * nucleus.iter().sum::<f64>();
        for (&token, weight) in order.iter().zip(&nucleus) {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        order[nucleus.len().max(1) - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn logits(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).expect("a vector")
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut sampler = Sampler::new(0.0, 1.0, 1);
        assert_eq!(sampler.next(&logits(&[0.5, 2.0, 2.0, -1.0])).ok(), Some(1));
        assert!(sampler.next(&logits(&[0.5, f32::NAN])).is_err());
    }

    #[test]
    fn draws_follow_the_softmax_within_the_nucleus() {
        let p = [0.5_f32, 0.3, 0.15, 0.05];
        let logits = logits(&p.map(f32::ln));
        let mut counts = [0_u32; 4];
        let mut sampler = Sampler::new(1.0, 0.9, 42);
        for _ in 0..10_000 {
            counts[sampler.next(&logits).expect("finite") as usize] += 1;
        }
        // 0.5 + 0.3 < 0.9 <= 0.95: the last token is outside.
        assert_eq!(counts[3], 0);
        for (count, p) in counts.iter().zip(&p[..3]) {
            let expected = 10_000.0 * f64::from(*p) / 0.95;
            // Five standard deviations of a binomial count.
            let tolerance = 5.0 * (expected * (1.0 - expected / 10_000.0)).sqrt();
            assert!((f64::from(*count) - expected).abs() < tolerance, "{counts:?}");
        }
    }
}
