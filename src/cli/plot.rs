//! Curves over one axis as SVG, each on a scale of its own, one panel below the other.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::error::{Error, Result};

const WIDTH: u32 = 900;
const PANEL_HEIGHT: u32 = 380;
const FONT: &str = "sans-serif";
const COLOURS: [RGBColor; 2] = [RGBColor(0x1f, 0x77, 0xb4), RGBColor(0xd6, 0x27, 0x28)];

/// What spans more than this factor is drawn on a logarithmic scale.
const LINEAR_SPAN: f64 = 10.0;

/// A curve and its panel.
#[derive(Debug)]
pub(super) struct Curve {
    /// What its scale shows.
    pub(super) title: String,
    /// `(x, y, standard error of y)` in the order of x.
    pub(super) points: Vec<(f64, f64, Option<f64>)>,
}

type Drawn<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The plot of those of `curves` that have points.
///
/// # Errors
/// [`Error::Bug`] where none has.
pub(super) fn svg(x_title: &str, curves: &[Curve]) -> Result<String> {
    let curves: Vec<&Curve> = curves.iter().filter(|curve| !curve.points.is_empty()).collect();
    let mut text = String::new();
    draw(&mut text, x_title, &curves).map_err(|e| Error::Bug(format!("could not plot: {e}")))?;
    Ok(text)
}

fn draw(text: &mut String, x_title: &str, curves: &[&Curve]) -> Drawn {
    if curves.is_empty() {
        return Err("no points".into());
    }
    let size = (WIDTH, PANEL_HEIGHT * curves.len() as u32);
    let root = SVGBackend::with_string(text, size).into_drawing_area();
    root.fill(&WHITE)?;
    let panels = root.split_evenly((curves.len(), 1));
    for ((area, curve), colour) in panels.iter().zip(curves).zip(COLOURS) {
        let (low, high) = span(curve);
        if low > 0.0 && high > LINEAR_SPAN * low {
            let scale = (low / 1.1..high * 1.1).log_scale();
            panel(area, x_title, curve, scale, &decades, colour)?;
        } else {
            // A little air, and no scale without extent.
            let air = (0.05 * (high - low)).max(1e-6 * high.abs()).max(f64::MIN_POSITIVE);
            panel(area, x_title, curve, low - air..high + air, &number, colour)?;
        }
    }
    root.present()?;
    Ok(())
}

/// The least and the largest that a curve shows, error bars included where they stay above zero.
fn span(curve: &Curve) -> (f64, f64) {
    let ends = curve.points.iter().flat_map(|&(_, y, error)| {
        let error = error.unwrap_or(0.0);
        [if y > error { y - error } else { y }, y + error]
    });
    ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| (low.min(y), high.max(y)))
}

fn panel<Y>(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    x_title: &str,
    curve: &Curve,
    scale: Y,
    label: &dyn Fn(f64) -> String,
    colour: RGBColor,
) -> Drawn
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let first = curve.points.first().map_or(0.0, |point| point.0);
    let last = curve.points.last().map_or(1.0, |point| point.0);
    let air = (0.02 * (last - first)).max(1e-3 * last.abs());
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(88)
        .build_cartesian_2d(first - air..last + air, scale)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 16))
        .x_desc(x_title)
        .y_desc(&curve.title)
        .x_label_formatter(&|x| number(*x))
        .y_label_formatter(&|y| label(*y))
        .draw()?;
    let line = curve.points.iter().map(|&(x, y, _)| (x, y));
    chart.draw_series(LineSeries::new(line.clone(), colour.stroke_width(2)))?;
    chart.draw_series(line.map(|point| Circle::new(point, 3, colour.filled())))?;
    let bars = curve.points.iter().filter_map(|&(x, y, error)| {
        let error = error.filter(|error| *error < y)?;
        Some(PathElement::new(vec![(x, y - error), (x, y + error)], colour.stroke_width(1)))
    });
    chart.draw_series(bars)?;
    Ok(())
}

/// A number in as few digits as tell it from its neighbours on a scale.
fn number(value: f64) -> String {
    if value != 0.0 && !(1e-3..1e6).contains(&value.abs()) {
        return format!("{value:.1e}");
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A label of a logarithmic scale: 1, 2 and 5 of every decade, the rest would overlap.
fn decades(value: f64) -> String {
    let digit = (value / 10_f64.powf((value.log10() + 1e-9).floor())).round();
    if [1.0, 2.0, 5.0].contains(&digit) { number(value) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let found = [0.0, 1.0, 2.5, 0.0625, 1234.0, 1e-5, 2e7].map(number);
        assert_eq!(found, ["0", "1", "2.5", "0.0625", "1234", "1.0e-5", "2.0e7"]);
        assert_eq!([0.1, 0.09, 20.0, 1000.0, 3.0].map(decades), ["0.1", "", "20", "1000", ""]);
    }

    #[test]
    fn a_panel_for_every_curve_that_has_points() {
        let curve = |title: &str, points: &[(f64, f64, Option<f64>)]| Curve {
            title: title.into(),
            points: points.to_vec(),
        };
        let curves = [
            curve("loss", &[(1.0, 0.5, None), (2.0, 0.5, None)]),
            curve("perplexity", &[(1.0, 1e4, Some(20.0)), (2.0, 5.0, Some(9.0))]),
            curve("nothing", &[]),
        ];
        let text = svg("MiB", &curves).unwrap();
        assert!(text.contains("loss") && text.contains("perplexity") && !text.contains("nothing"));
        assert!(svg("MiB", &curves[2..]).is_err());
    }
}
