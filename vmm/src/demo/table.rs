//! Text tables.

use std::fmt;

/// A table of text: columns as wide as their widest cell, the first one aligned left, numbers right.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    bars: Vec<usize>,
}

impl Table {
    /// A table with these column titles. A title that begins with `|` has a bar before its column.
    pub fn new(titles: &[&str]) -> Self {
        let bars = (0..titles.len())
            .filter(|&i| titles[i].starts_with('|'))
            .collect();
        let titles = titles
            .iter()
            .map(|title| title.trim_start_matches('|').to_owned())
            .collect();
        Self {
            rows: vec![titles],
            bars,
        }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        (0..columns)
            .map(|i| {
                self.rows
                    .iter()
                    .filter_map(|row| row.get(i))
                    .map(|cell| cell.chars().count())
                    .max()
            })
            .map(|width| width.unwrap_or(0))
            .collect()
    }

    fn write_line(
        &self,
        f: &mut fmt::Formatter<'_>,
        cells: &[String],
        widths: &[usize],
    ) -> fmt::Result {
        let mut line = String::new();
        for (i, &width) in widths.iter().enumerate() {
            let cell = cells.get(i).map_or("", String::as_str);
            line.push_str(match (i, self.bars.contains(&i)) {
                (0, _) => "  ",
                (_, true) => " | ",
                (_, false) => "  ",
            });
            let number = cell.starts_with(|first: char| first.is_ascii_digit()) || cell == "-";
            line.push_str(&if number {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            });
        }
        writeln!(f, "{}", line.trim_end())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        let rule: Vec<_> = widths.iter().map(|&width| "-".repeat(width)).collect();
        for (i, row) in self.rows.iter().enumerate() {
            self.write_line(f, row, &widths)?;
            if i == 0 {
                self.write_line(f, &rule, &widths)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["bug", "pages", "|without"]);
        table.row(vec!["null-read".into(), "3".into(), "SIGSEGV".into()]);
        table.row(vec!["mess".into(), "120".into()]);
        let expected = "  bug        pages | without\n  ---------  ----- | -------\n  \
                        null-read      3 | SIGSEGV\n  mess         120 |\n";
        assert_eq!(table.to_string(), expected);
    }
}
