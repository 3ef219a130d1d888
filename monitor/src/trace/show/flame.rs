//! The flame graph: an SVG for a browser, in which stacks can be searched and looked into. Its script is inferno's own; whoever
//! serves it confines it (`web/traces.rs`).

use anyhow::{Context as _, Result};
use inferno::flamegraph::{
    self, Options, TextTruncateDirection,
    color::{BasicPalette, Palette},
};

use super::{folded, name};
use crate::{figures, trace::growth::Growth};

/// Characters of a service's name in the title.
const NAME: usize = 80;

/// Draws it.
///
/// # Errors
/// When the drawing fails, which it has no reason to.
pub(super) fn draw(growth: &Growth) -> Result<Vec<u8>> {
    let mut folded = folded::folded(growth, ' ');
    if folded.is_empty() {
        // Nothing to draw would be an error in there.
        folded = "[no growth that stays] 1\n".to_owned();
    }
    let mut options = Options::default();
    options.title = format!("{}: memory that stays, by call stack", name::short(&growth.service, NAME));
    options.subtitle = Some(subtitle(growth));
    options.count_name = "bytes an hour".to_owned();
    options.name_type = "Function:".to_owned();
    options.colors = Palette::Basic(BasicPalette::Mem);
    // The same colour for the same name in each picture, so that two can be held side by side.
    options.hash = true;
    // How a name begins says more than the end of its arguments.
    options.text_truncate_direction = TextTruncateDirection::Right;
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, folded.lines(), &mut svg).context("cannot draw the flame graph")?;
    Ok(svg)
}

fn subtitle(growth: &Growth) -> String {
    let builds: Vec<_> = growth.programs.iter().filter_map(|program| program.build_id.as_deref()).collect();
    let build = match builds.as_slice() {
        [] => String::new(),
        [one] => format!("build {}, ", name::build(one)),
        [first, others @ ..] => format!("build {} and {} more, ", name::build(first), others.len()),
    };
    let total = figures::bytes(growth.total() as u64);
    let took = figures::span((growth.seconds * 1e3) as u64);
    format!("{build}{total} an hour, seen in {took} from {:.0}", growth.began)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::show::sample;

    #[test]
    fn the_picture_names_service_build_and_growth() {
        let svg = String::from_utf8(draw(&sample::growth()).expect("drawn")).expect("UTF-8");
        for part in
            ["<svg", "web.service: memory that stays", "build 3f9a0c1d2e4b, 203.0 MiB an hour", "web::cache::insert"]
        {
            assert!(svg.contains(part), "{part}");
        }
    }

    #[test]
    fn no_name_leaves_its_place_in_the_picture() {
        let plain = String::from_utf8(draw(&sample::growth()).expect("drawn")).expect("UTF-8");
        let mut hostile = sample::hostile(10_000);
        hostile.service = "</title><script>alert(1)</script>\x1b]]>".to_owned();
        let svg = String::from_utf8(draw(&hostile).expect("drawn")).expect("UTF-8");
        assert!(svg.len() < 64 << 20, "{}", svg.len());
        let scripts = |text: &str| text.matches("<script").count();
        assert_eq!(scripts(&svg), scripts(&plain), "one, its own");
        assert!(!svg.chars().any(|character| character.is_control() && !matches!(character, '\n' | '\t' | '\r')));
    }

    #[test]
    fn without_growth_there_is_a_picture_too() {
        let mut growth = sample::growth();
        (growth.stacks, growth.others_bytes_per_hour) = (Vec::new(), 0.0);
        assert!(String::from_utf8(draw(&growth).expect("drawn")).expect("UTF-8").contains("no growth that stays"));
    }
}
