//! The statistics of Li and Kuo's evaluation: summaries, the paired t-test, Pearson's correlation and the line of least squares. Pure.

/// What a table says about a series of measurements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) mean: f64,
    /// Standard deviation of the sample (n - 1); none of a single value.
    pub(crate) deviation: Option<f64>,
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// None of nothing.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let upper = sorted[half];
        let median = if sorted.len() % 2 == 1 { upper } else { f64::midpoint(sorted[half - 1], upper) };
        Some(Self { count: sorted.len(), mean: mean(values), deviation: deviation(values), min, median, max })
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Sum of the squared distances from the mean.
fn squares(values: &[f64]) -> f64 {
    let mean = mean(values);
    values.iter().map(|value| (value - mean).powi(2)).sum()
}

fn deviation(values: &[f64]) -> Option<f64> {
    (values.len() > 1).then(|| (squares(values) / (values.len() - 1) as f64).sqrt())
}

/// Student's t-test of paired samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PairedTest {
    pub(crate) pairs: usize,
    /// Mean of first less second.
    pub(crate) mean_difference: f64,
    pub(crate) t: f64,
    pub(crate) degrees: usize,
    /// Probability of such a |t| or a larger one without any difference.
    pub(crate) p: f64,
}

impl PairedTest {
    /// None with fewer than two pairs, or when all differences are the same.
    pub(crate) fn of(first: &[f64], second: &[f64]) -> Option<Self> {
        assert_eq!(first.len(), second.len(), "pairs");
        let differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| a - b).collect();
        let error = deviation(&differences)? / (differences.len() as f64).sqrt();
        if error <= 0.0 {
            return None;
        }
        let (mean_difference, degrees) = (mean(&differences), differences.len() - 1);
        let t = mean_difference / error;
        Some(Self { pairs: differences.len(), mean_difference, t, degrees, p: two_sided(t, degrees as f64) })
    }
}

/// P(|T| >= |t|) of Student's distribution: the regularised incomplete beta function at ν / (ν + t²).
fn two_sided(t: f64, degrees: f64) -> f64 {
    incomplete_beta(degrees / 2.0, 0.5, degrees / (degrees + t * t))
}

/// The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22).
pub(crate) fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return if x <= 0.0 { 0.0 } else { 1.0 };
    }
    // The fraction converges fast below the mean only; above it the symmetry helps.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    let front = log_gamma(a + b) - log_gamma(a) - log_gamma(b) + a * x.ln() + b * (1.0 - x).ln();
    front.exp() / a * beta_fraction(a, b, x)
}

/// The continued fraction of the incomplete beta function, by Lentz's method.
fn beta_fraction(a: f64, b: f64, x: f64) -> f64 {
    const TERMS_MAX: u32 = 500;
    const TINY: f64 = 1e-300;
    let away_from_zero = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    for term in 1..=TERMS_MAX {
        let m = f64::from(term);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut last = 1.0;
        for numerator in [even, odd] {
            d = 1.0 / away_from_zero(1.0 + numerator * d);
            c = away_from_zero(1.0 + numerator / c);
            last = c * d;
            fraction *= last;
        }
        if (last - 1.0).abs() < 1e-15 {
            break;
        }
    }
    fraction
}

/// ln Γ(x) for x > 0: Stirling's series (DLMF 5.11.1) after stepping up to where it is exact to a double.
fn log_gamma(x: f64) -> f64 {
    const ENOUGH: f64 = 15.0;
    let (mut z, mut below) = (x, 0.0);
    while z < ENOUGH {
        below += z.ln();
        z += 1.0;
    }
    let inverse = 1.0 / (z * z);
    let series = (1.0 / 12.0 - inverse * (1.0 / 360.0 - inverse * (1.0 / 1260.0 - inverse / 1680.0))) / z;
    (z - 0.5) * z.ln() - z + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - below
}

/// A line through points and how well it fits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Line {
    pub(crate) slope: f64,
    pub(crate) intercept: f64,
    /// Pearson's correlation coefficient; none when all values are the same.
    pub(crate) correlation: Option<f64>,
}

impl Line {
    /// The line of least squares; none when all points have the same x.
    pub(crate) fn of(points: &[(f64, f64)]) -> Option<Self> {
        let (x, y): (Vec<f64>, Vec<f64>) = points.iter().copied().unzip();
        let (spread, other) = (squares(&x), squares(&y));
        if points.len() < 2 || spread <= 0.0 {
            return None;
        }
        let (mean_x, mean_y) = (mean(&x), mean(&y));
        let together: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
        let slope = together / spread;
        let correlation = (other > 0.0).then(|| together / (spread * other).sqrt());
        Some(Self { slope, intercept: mean_y - slope * mean_x, correlation })
    }

    pub(crate) fn at(&self, x: f64) -> f64 {
        self.intercept + self.slope * x
    }
}

/// The value below which this part of a standard normal distribution lies, for 0 < part < 1.
pub(crate) fn normal_quantile(part: f64) -> f64 {
    let (mut low, mut high) = (-40.0, 40.0);
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if normal(middle) < part { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

/// P(Z <= z) of the standard normal distribution: half of Z² is a gamma variable.
fn normal(z: f64) -> f64 {
    let inside = half_gamma(z * z / 2.0);
    if z < 0.0 { f64::midpoint(1.0, -inside) } else { f64::midpoint(1.0, inside) }
}

/// The regularised lower incomplete gamma function P(1/2, x), by its power series (DLMF 8.11.4): what erf(√x) is.
fn half_gamma(x: f64) -> f64 {
    // Beyond this the rest is below 1e-16.
    if x > 36.0 {
        return 1.0;
    }
    let (mut term, mut sum, mut k) = (2.0, 2.0, 0.5);
    while term > sum * 1e-17 {
        k += 1.0;
        term *= x / k;
        sum += term;
    }
    sum * (0.5 * x.max(f64::MIN_POSITIVE).ln() - x - log_gamma(0.5)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, wanted: f64, by: f64) {
        assert!((found - wanted).abs() <= by, "{found} is not {wanted}");
    }

    /// Gosset's sleep data (Student 1908, the sample set `sleep` of R): t.test(paired = TRUE) says t = -4.0621, df = 9, p = 0.002833.
    #[test]
    fn student_s_own_example() {
        let first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0];
        let second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4];
        let test = PairedTest::of(&first, &second).unwrap();
        assert_eq!((test.pairs, test.degrees), (10, 9));
        close(test.mean_difference, -1.58, 1e-12);
        close(test.t, -4.062_127_683_382_037, 1e-12);
        close(test.p, 0.002_832_89, 1e-8);
    }

    /// From the usual table of Student's distribution, two-sided.
    #[test]
    fn critical_values_have_their_probability() {
        for (degrees, t, p) in [
            (1.0, 12.706_204_736_432_1, 0.05),
            (5.0, 2.570_581_835_636_31, 0.05),
            (30.0, 2.749_995_653_567_23, 0.01),
            (919.0, 1.962_548_691_317_25, 0.05),
        ] {
            close(two_sided(t, degrees), p, 1e-10);
            close(two_sided(-t, degrees), p, 1e-10);
        }
        close(two_sided(0.0, 7.0), 1.0, 1e-12);
        // With one degree of freedom it is Cauchy's distribution, with two it has a closed form as well.
        close(two_sided(1.0, 1.0), 0.5, 1e-12);
        close(two_sided(3.0, 2.0), 1.0 - 3.0 / 11.0_f64.sqrt(), 1e-12);
    }

    #[test]
    fn the_incomplete_beta_function_in_closed_form() {
        for x in [0.01, 0.3, 0.5, 0.77, 0.99] {
            close(incomplete_beta(1.0, 1.0, x), x, 1e-13);
            close(incomplete_beta(3.0, 1.0, x), x.powi(3), 1e-13);
            close(incomplete_beta(2.0, 2.0, x), x * x * (3.0 - 2.0 * x), 1e-13);
            close(incomplete_beta(0.5, 0.5, x), 2.0 / std::f64::consts::PI * x.sqrt().asin(), 1e-12);
            close(incomplete_beta(4.5, 0.5, x) + incomplete_beta(0.5, 4.5, 1.0 - x), 1.0, 1e-12);
        }
        assert_eq!((incomplete_beta(2.0, 3.0, 0.0), incomplete_beta(2.0, 3.0, 1.0)), (0.0, 1.0));
    }

    #[test]
    fn the_gamma_function_where_it_is_known() {
        close(log_gamma(1.0), 0.0, 1e-13);
        close(log_gamma(0.5), std::f64::consts::PI.sqrt().ln(), 1e-13);
        close(log_gamma(11.0), 3_628_800.0_f64.ln(), 1e-13);
    }

    #[test]
    fn pairs_that_tell_nothing() {
        assert_eq!(PairedTest::of(&[1.0], &[2.0]), None);
        assert_eq!(PairedTest::of(&[1.0, 2.0], &[2.0, 3.0]), None, "the differences do not vary");
    }

    /// Anscombe's first set: r = 0.81642, y = 3.0001 + 0.50009 x.
    #[test]
    fn anscombe_s_line() {
        let x = [10.0, 8.0, 13.0, 9.0, 11.0, 14.0, 6.0, 4.0, 12.0, 7.0, 5.0];
        let y = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68];
        let points: Vec<_> = x.into_iter().zip(y).collect();
        let line = Line::of(&points).unwrap();
        close(line.correlation.unwrap(), 0.816_420_516_3, 1e-9);
        close(line.slope, 0.500_090_909, 1e-9);
        close(line.at(0.0), 3.000_090_909, 1e-9);
        assert_eq!(Line::of(&[(1.0, 2.0), (1.0, 3.0)]), None);
        assert_eq!(Line::of(&[(1.0, 2.0), (2.0, 2.0)]).unwrap().correlation, None);
    }

    #[test]
    fn summaries() {
        let odd = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.count, odd.mean, odd.min, odd.median, odd.max), (3, 2.0, 1.0, 2.0, 3.0));
        let even = Summary::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        close(even.deviation.unwrap(), (32.0_f64 / 7.0).sqrt(), 1e-12);
        assert_eq!(even.median, 4.5);
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0]).unwrap().deviation, None);
    }

    #[test]
    fn normal_quantiles() {
        for (part, z) in [(0.5, 0.0), (0.975, 1.959_963_984_540_054), (0.001, -3.090_232_306_167_814)] {
            close(normal_quantile(part), z, 1e-9);
        }
    }
}
