//! Tables for the terminal and the same as Markdown. Knows nothing of what they are about.

use std::fmt::Write as _;
use std::ops::Range;
use std::time::Duration;

/// A table under construction.
pub(crate) struct Table {
    title: String,
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, heads: &[&str]) -> Self {
        let heads = heads.iter().map(|head| (*head).to_owned()).collect();
        Self { title: title.into(), heads, rows: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.heads.len(), "{cells:?}");
        self.rows.push(cells);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn note(&mut self, words: impl Into<String>) {
        self.notes.push(words.into());
    }

    fn widths(&self) -> Vec<usize> {
        let width = |column: usize| self.rows.iter().chain([&self.heads]).map(|row| row[column].chars().count()).max();
        (0..self.heads.len()).map(|column| width(column).unwrap_or(0)).collect()
    }

    /// The first column to the left, figures to the right.
    fn line(&self, cells: &[String], separator: &str) -> String {
        let padded = cells.iter().zip(self.widths()).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        padded.collect::<Vec<_>>().join(separator)
    }

    fn text(&self) -> String {
        let mut out = format!("\n{}\n", self.title);
        for row in [&self.heads].into_iter().chain(&self.rows) {
            let _ = writeln!(out, "  {}", self.line(row, "  ").trim_end());
        }
        for note in &self.notes {
            let _ = writeln!(out, "  {note}");
        }
        out
    }

    fn markdown(&self) -> String {
        let rule: Vec<String> = (0..self.heads.len()).map(|i| if i == 0 { "---" } else { "---:" }.to_owned()).collect();
        let mut out = format!("\n### {}\n\n", self.title);
        for row in [&self.heads, &rule].into_iter().chain(&self.rows) {
            let _ = writeln!(out, "| {} |", self.line(row, " | "));
        }
        for note in &self.notes {
            let _ = write!(out, "\n{note}\n");
        }
        out
    }
}

/// Everything measured, printed as it comes.
pub(crate) struct Report {
    body: String,
    pictures: Vec<(String, String)>,
    failures: Vec<String>,
    aims: Table,
    any_aim: bool,
}

impl Report {
    pub(crate) fn new() -> Self {
        let aims = Table::new("Aims", &["aim", "wanted", "measured", "met"]);
        Self { body: String::new(), pictures: Vec::new(), failures: Vec::new(), aims, any_aim: false }
    }

    pub(crate) fn facts(&mut self, facts: Vec<String>) {
        for fact in facts {
            println!("{fact}");
            let _ = writeln!(self.body, "- {fact}");
        }
    }

    pub(crate) fn table(&mut self, table: &Table) {
        print!("{}", table.text());
        self.body += &table.markdown();
    }

    /// A picture for the file of this name in the folder `figures`; shown below the heading of its group.
    pub(crate) fn picture(&mut self, heading: &str, name: &str, svg: String) {
        let heading = format!("\n### {heading}\n");
        if !self.body.contains(&heading) {
            self.body += &heading;
        }
        let words = name.trim_end_matches(".svg").replace('-', " ");
        let _ = write!(self.body, "\n![{words}](figures/{name})\n");
        self.pictures.push((name.to_owned(), svg));
    }

    pub(crate) fn pictures(&self) -> &[(String, String)] {
        &self.pictures
    }

    /// Everything as Markdown, without a heading.
    pub(crate) fn body(&self) -> &str {
        &self.body
    }

    pub(crate) fn failure(&mut self, words: String) {
        println!("  FAILED: {words}");
        self.failures.push(words);
    }

    /// Takes a result apart; a failure is printed and kept.
    pub(crate) fn keep<T>(&mut self, who: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|words| self.failure(format!("{who}: {words}"))).ok()
    }

    /// Compares a figure with what was aimed at; more is better unless `at_most`.
    pub(crate) fn aim(&mut self, what: &str, wanted: f64, measured: Option<f64>, at_most: bool) {
        let met = measured.is_some_and(|found| if at_most { found <= wanted } else { found >= wanted });
        let wanted = format!("{} {}", if at_most { "at most" } else { "at least" }, figure(wanted));
        let row = [what.to_owned(), wanted, measured.map_or("-".into(), figure), if met { "yes" } else { "no" }.into()];
        self.aims.row(row.into());
        self.any_aim = true;
    }

    pub(crate) fn has_failures(&self) -> bool {
        !self.failures.is_empty()
    }

    pub(crate) fn finish(&mut self) {
        if self.any_aim {
            print!("{}", self.aims.text());
            self.body += &self.aims.markdown();
        }
        let failures: String = self.failures.iter().map(|words| format!("- {words}\n")).collect();
        if self.has_failures() {
            print!("\nWhat failed:\n{failures}");
            let _ = write!(self.body, "\n### What failed\n\n{failures}");
        }
    }

    pub(crate) fn markdown(&self) -> String {
        format!(
            "# Benchmarks\n\nWritten by `make bench`; do not edit. Every figure is the median of its rounds, the systems \
             take turns in every round, and the file systems are synced before every measurement, so that nobody pays for \
             what another left in the page cache. Ratios above 1 mean that the row's system is better.\n\n{}",
            self.body
        )
    }
}

/// Where a section of this name of a Markdown document is, with its heading.
fn place(document: &str, name: &str) -> Option<Range<usize>> {
    let heading = format!("## {name}\n");
    let begins = |at: &usize| *at == 0 || document[..*at].ends_with('\n');
    let at = document.match_indices(&heading).map(|(at, _)| at).find(begins)?;
    let inside = at + heading.len();
    let end = document[inside..].find("\n## ").map_or(document.len(), |end| inside + end + 1);
    Some(at..end)
}

/// A section of this name of a Markdown document, without its heading.
pub(crate) fn section<'a>(document: &'a str, name: &str) -> Option<&'a str> {
    let place = place(document, name)?;
    document[place].split_once('\n').map(|(_, body)| body.trim())
}

/// The document with this section in the place of the one of the same name, or at its end.
pub(crate) fn with_section(document: &str, name: &str, body: &str) -> String {
    let new = format!("## {name}\n\n{}\n", body.trim_end());
    match place(document, name) {
        Some(old) => {
            let after = &document[old.end..];
            let space = if after.is_empty() { "" } else { "\n" };
            format!("{}{new}{space}{after}", &document[..old.start])
        }
        None if document.is_empty() => new,
        None => format!("{}\n\n{new}", document.trim_end()),
    }
}

/// A figure with as many digits as mean something.
pub(crate) fn figure(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 0.1 || v == 0.0 => format!("{v:.2}"),
        v if v >= 0.01 => format!("{v:.3}"),
        v => format!("{v:.4}"),
    }
}

pub(crate) fn milliseconds(value: f64) -> String {
    format!("{} ms", figure(value))
}

/// A ratio, or a dash when either side is missing.
pub(crate) fn ratio(value: Option<f64>, of: Option<f64>) -> String {
    quotient(value, of).map_or_else(|| "-".into(), |r| format!("{r:.2}x"))
}

pub(crate) fn quotient(value: Option<f64>, of: Option<f64>) -> Option<f64> {
    value.zip(of).filter(|(_, of)| *of > 0.0).map(|(value, of)| value / of)
}

pub(crate) fn or_dash(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), figure)
}

/// The middle value.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The value that this part of the others does not exceed.
pub(crate) fn quantile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * part).round() as usize).copied()
}

/// Decimal megabytes a second.
pub(crate) fn megabytes_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_put_in_and_replaced_and_nothing_else_changes() {
        let document = "# Title\n\ntext\n\n## One\n\n### Sub\n\na\n\n## Three\n\nc\n";
        assert_eq!(section(document, "One"), Some("### Sub\n\na"));
        assert_eq!(section(document, "Sub"), None, "that is a heading below another");
        let more = with_section(document, "Two", "b\n");
        assert_eq!(more, format!("{document}\n## Two\n\nb\n"));
        let changed = with_section(&more, "One", "A");
        assert_eq!(changed, more.replace("### Sub\n\na", "A"));
        assert_eq!(with_section(&changed, "One", "A"), changed);
        assert_eq!(with_section(&more, "Two", "B"), more.replace("\n\nb\n", "\n\nB\n"));
        assert_eq!(with_section("", "Two", "b"), "## Two\n\nb\n");
    }
}
