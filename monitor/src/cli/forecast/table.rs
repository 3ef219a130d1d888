//! A series as CSV. A wrong header or row is one error that names line and column.

use std::io::Read;

use anyhow::{Context as _, Result, bail, ensure};
use csv::{ReaderBuilder, StringRecord, Trim};

use crate::memory::trend::Sample;

/// What the header must name, and what it may.
const COLUMNS: [&str; 4] = ["time", "start", "bytes", "limit"];
const CPU: &str = "cpu";

/// Where the columns are.
struct Header {
    required: [usize; 4],
    cpu: Option<usize>,
}

impl Header {
    fn of(record: &StringRecord) -> Result<Self> {
        for (index, name) in record.iter().enumerate() {
            let known = name == CPU || COLUMNS.contains(&name);
            ensure!(
                known,
                "line 1: there is no column '{name}'; the header is time,start,bytes,limit and optionally cpu"
            );
            ensure!(record.iter().take(index).all(|other| other != name), "line 1: the column '{name}' is there twice");
        }
        let place = |name: &str| record.iter().position(|column| column == name);
        let mut required = [0; 4];
        for (slot, name) in required.iter_mut().zip(COLUMNS) {
            *slot = place(name).with_context(|| {
                format!(
                    "line 1: the column '{name}' is missing; the header is time,start,bytes,limit and optionally cpu"
                )
            })?;
        }
        Ok(Self { required, cpu: place(CPU) })
    }
}

/// Reads all rows.
///
/// # Errors
/// At the first row that is none, with its line and column.
pub(super) fn read(input: impl Read) -> Result<Vec<Sample>> {
    let mut reader = ReaderBuilder::new().trim(Trim::All).from_reader(input);
    let header = Header::of(reader.headers().context("line 1")?)?;
    let mut samples = Vec::new();
    for record in reader.records() {
        samples.push(row(&record?, &header)?);
    }
    Ok(samples)
}

fn row(record: &StringRecord, header: &Header) -> Result<Sample> {
    let number = |name: &str, index: usize| -> Result<Option<f64>> {
        let text = record.get(index).unwrap_or_default();
        if text.is_empty() {
            return Ok(None);
        }
        let place = || {
            let line = record.position().map_or(0, csv::Position::line);
            format!("line {line}, column {name}: '{text}'")
        };
        let Ok(value) = text.parse::<f64>() else { bail!("{} is no number", place()) };
        ensure!(value.is_finite() && value >= 0.0, "{} is not zero or more", place());
        Ok(Some(value))
    };
    let [time, start, bytes, limit] = header.required;
    let required = |name: &str, index: usize| {
        let line = record.position().map_or(0, csv::Position::line);
        number(name, index)?.with_context(|| format!("line {line}, column {name}: there is no value"))
    };
    let cpu = header.cpu.map(|index| number(CPU, index)).transpose()?.flatten();
    Ok(Sample {
        time: required("time", time)?,
        start: required("start", start)?,
        bytes: required("bytes", bytes)?,
        limit: number("limit", limit)?,
        cpu,
        pressure: None,
        build: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        format!("{:#}", read(text.as_bytes()).expect_err("it is wrong"))
    }

    #[test]
    fn columns_come_in_any_order_and_a_limit_may_be_missing() {
        let samples =
            read("limit,bytes,cpu,start,time\n100,50,0.5,1,61\n , 51,,1,121\n".as_bytes()).expect("it is right");
        assert_eq!((samples[0].time, samples[0].limit, samples[0].cpu), (61.0, Some(100.0), Some(0.5)));
        assert_eq!((samples[1].bytes, samples[1].limit, samples[1].cpu), (51.0, None, None));
        assert!(read("time,start,bytes,limit\n".as_bytes()).expect("it is right").is_empty());
    }

    #[test]
    fn an_error_names_line_and_column() {
        assert!(error("time,start,bytes\n").starts_with("line 1: the column 'limit' is missing"));
        assert!(error("").starts_with("line 1: the column 'time' is missing"));
        assert!(error("time,start,bytes,limit,rss\n").starts_with("line 1: there is no column 'rss'"));
        assert!(error("time,time,start,bytes,limit\n").starts_with("line 1: the column 'time' is there twice"));
        let header = "time,start,bytes,limit\n1,1,1,1\n";
        assert_eq!(error(&format!("{header}2,1,many,1\n")), "line 3, column bytes: 'many' is no number");
        assert_eq!(error(&format!("{header}2,1,NaN,1\n")), "line 3, column bytes: 'NaN' is not zero or more");
        assert_eq!(error(&format!("{header}2,1,5,-1\n")), "line 3, column limit: '-1' is not zero or more");
        assert_eq!(error(&format!("{header}2,1,,1\n")), "line 3, column bytes: there is no value");
        assert!(error(&format!("{header}2,1,1\n")).contains("line: 3"), "{}", error(&format!("{header}2,1,1\n")));
    }
}
