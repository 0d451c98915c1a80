//! Scatter plots of time against something with their regression lines, as SVG that can be read on light and on dark. Knows nothing of how
//! the points were measured.

use std::fmt::Write as _;

use super::statistics::Line;

/// Points of one colour.
pub(crate) struct Series {
    pub(crate) name: String,
    /// What goes across, time in seconds.
    pub(crate) points: Vec<(f64, f64)>,
}

/// What goes across: the axis's name, and one of its units.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Across {
    axis: &'static str,
    one: &'static str,
}

impl Across {
    pub(crate) const SIZE: Self = Self { axis: "size, MB", one: "MB" };
    pub(crate) const FILES: Self = Self { axis: "files", one: "file" };
}

/// One pair of axes.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) across: Across,
    pub(crate) series: Vec<Series>,
}

const WIDTH: f64 = 520.0;
const PLOT: (f64, f64) = (420.0, 280.0);
const LEFT: f64 = 70.0;
const TOP: f64 = 70.0;
const LEGEND_ROW: f64 = 18.0;
/// Colours that keep their distance from white and from black, and from each other for most eyes (Okabe and Ito).
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

/// Panels side by side below a title.
pub(crate) fn scatter(title: &str, panels: &[Panel]) -> String {
    let rows = panels.iter().map(|panel| panel.series.len()).max().unwrap_or(0);
    let width = WIDTH * panels.len() as f64;
    let height = TOP + PLOT.1 + 60.0 + LEGEND_ROW * rows as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<style>\n.back {{ fill: #ffffff }} text {{ fill: #1f2328 }} \
         .axis {{ stroke: #1f2328 }} .grid {{ stroke: #d0d7de }}\n@media (prefers-color-scheme: dark) {{ .back {{ fill: #0d1117 }} \
         text {{ fill: #e6edf3 }} .axis {{ stroke: #e6edf3 }} .grid {{ stroke: #30363d }} }}\n</style>\n\
         <rect class=\"back\" width=\"{width:.0}\" height=\"{height:.0}\"/>\n<text x=\"{LEFT}\" y=\"26\" font-size=\"16\">{}</text>\n",
        escaped(title)
    );
    for (index, panel) in panels.iter().enumerate() {
        let _ = write!(out, "<g transform=\"translate({:.0} 0)\">\n{}</g>\n", index as f64 * WIDTH, drawn(panel));
    }
    out + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Distance between the marks of an axis that reaches at least `end` with five of them or so: 1, 2 or 5 times a power of ten.
fn step(end: f64) -> f64 {
    let rough = end.max(1e-9) / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough * 0.999).unwrap_or(10.0);
    factor * power
}

/// From data to the drawing.
struct Axes {
    across: Across,
    end: (f64, f64),
    step: (f64, f64),
}

impl Axes {
    fn over(panel: &Panel) -> Self {
        let points = || panel.series.iter().flat_map(|series| series.points.iter());
        let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        let most = (largest(&mut points().map(|p| p.0)), largest(&mut points().map(|p| p.1)));
        let step = (step(most.0), step(most.1));
        let end = |most: f64, step: f64| (most / step).ceil().max(1.0) * step;
        Self { across: panel.across, end: (end(most.0, step.0), end(most.1, step.1)), step }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + value / self.end.0 * PLOT.0
    }

    fn y(&self, value: f64) -> f64 {
        TOP + PLOT.1 - value / self.end.1 * PLOT.1
    }
}

fn marks(end: f64, step: f64) -> impl Iterator<Item = f64> {
    (0..=(end / step).round() as u32).map(move |mark| f64::from(mark) * step)
}

/// As many decimals as the step has.
fn label(value: f64, step: f64) -> String {
    let decimals = if step >= 1.0 { 0 } else { -step.log10().floor() as usize };
    format!("{value:.decimals$}")
}

fn drawn(panel: &Panel) -> String {
    let axes = Axes::over(panel);
    let title = escaped(&panel.title);
    let mut out = format!("<text x=\"{LEFT}\" y=\"52\" font-size=\"14\">{title}</text>\n{}", grid(&axes));
    for (index, series) in panel.series.iter().enumerate() {
        out += &plotted(series, index, &axes);
    }
    out
}

/// Grid lines with their numbers, and the axes with their names.
fn grid(axes: &Axes) -> String {
    let (bottom, right) = (TOP + PLOT.1, LEFT + PLOT.0);
    let mut out = String::new();
    for mark in marks(axes.end.0, axes.step.0) {
        let (x, text) = (axes.x(mark), label(mark, axes.step.0));
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
            bottom + 16.0
        );
    }
    for mark in marks(axes.end.1, axes.step.1) {
        let (y, text) = (axes.y(mark), label(mark, axes.step.1));
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    let _ = writeln!(
        out,
        "<path class=\"axis\" fill=\"none\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>\
         <text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
         <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">time, s</text>",
        bottom + 34.0,
        axes.across.axis,
        TOP + PLOT.1 / 2.0
    );
    out
}

/// Points, regression line and legend of a series.
fn plotted(series: &Series, index: usize, axes: &Axes) -> String {
    let colour = COLOURS[index % COLOURS.len()];
    let mut out = String::new();
    for (x, y) in &series.points {
        let (x, y) = (axes.x(*x), axes.y(*y));
        let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\" fill-opacity=\"0.6\"/>");
    }
    let line = Line::of(&series.points);
    if let Some(line) = line {
        let ends = series.points.iter().map(|point| point.0);
        let (from, to) = ends.fold((f64::MAX, 0.0_f64), |(low, high), x| (low.min(x), high.max(x)));
        let point = |x: f64| format!("{:.1} {:.1}", axes.x(x), axes.y(line.at(x).clamp(0.0, axes.end.1)));
        let _ = writeln!(out, "<path stroke=\"{colour}\" stroke-width=\"1.5\" d=\"M{}L{}\"/>", point(from), point(to));
    }
    let one = axes.across.one;
    let fit = line.map_or_else(String::new, |line| format!(": {:.2} s, {:+.2} s a {one}", line.intercept, line.slope));
    let y = TOP + PLOT.1 + 56.0 + index as f64 * LEGEND_ROW;
    let name = escaped(&series.name);
    let _ = writeln!(
        out,
        "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{y:.1}\">{name}{fit}</text>",
        LEFT + 4.0,
        y - 4.0,
        LEFT + 16.0
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_its_points_lines_and_names() {
        let series = |name: &str, slope: f64| Series {
            name: name.into(),
            points: (1..=5).map(|x| (f64::from(x), f64::from(x) * slope + 1.0)).collect(),
        };
        let panel = Panel {
            title: "images".into(),
            across: Across::SIZE,
            series: vec![series("a < b", 10.0), series("c", 1.0)],
        };
        let svg = scatter("Time & size", &[panel]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<circle").count(), 5 + 5 + 2);
        assert_eq!(svg.matches("stroke-width").count(), 2);
        assert!(svg.contains("a &lt; b: 1.00 s, +10.00 s a MB") && svg.contains("Time &amp; size"));
        assert!(svg.contains("prefers-color-scheme: dark"));
        assert_eq!(svg.matches("<g ").count(), svg.matches("</g>").count());
    }

    #[test]
    fn axes_end_at_a_round_number_beyond_the_data() {
        assert_eq!([0.9, 4.2, 18.5, 617.0].map(step), [0.2, 1.0, 5.0, 200.0]);
        let panel = |points| Panel {
            title: String::new(),
            across: Across::FILES,
            series: vec![Series { name: String::new(), points }],
        };
        let axes = Axes::over(&panel(vec![(18.5, 617.0)]));
        assert_eq!(axes.end, (20.0, 800.0));
        assert!((axes.x(20.0) - (LEFT + PLOT.0)).abs() < 1e-9 && (axes.y(800.0) - TOP).abs() < 1e-9);
        assert_eq!((label(0.4, 0.2), label(5.0, 5.0), label(0.05, 0.05)), ("0.4".into(), "5".into(), "0.05".into()));
        assert!(!drawn(&panel(Vec::new())).contains("NaN"));
    }
}
