//! Visits that look like those of real sites, and hostile ones among them.

use pixel::visit::lines::{LineFormat, Numbered};
use pixel::visit::{Text, Visit};
use uuid::Uuid;

use super::chance::Chance;

/// What somebody sends who wants a line to break, or a field to be forged.
const HOSTILE: [&str; 12] = [
    "\n",
    "a|b",
    "null",
    "-",
    "\" 200 43 \"",
    "\\\"",
    "a\u{0}b\u{7f}",
    "é😀\u{85}\u{a0}",
    "<script>alert(1)</script>",
    "=cmd()",
    "a,b\r\n\"c\"",
    "%0a%00%ff",
];

/// `count` visits, the same in each run; with their numbers.
pub fn varied(count: u64) -> Vec<(Visit<'static>, Option<(Uuid, u64)>)> {
    let mut chance = Chance(0x5eed);
    (1..=count).map(|n| (one(&mut chance, n), Some((Uuid::from_u128(7), n)))).collect()
}

fn one(chance: &mut Chance, n: u64) -> Visit<'static> {
    // Six hours and a half of a November day.
    let time =
        jiff::Timestamp::from_microsecond(1_763_899_200_000_000 + n as i64 * 11_728_390 % 23_400_000_000);
    let ip: std::net::IpAddr = match chance.below(4) {
        0 => [0x2001, 0xdb8, 0, 0, 0, 0, 0, chance.below(65_536) as u16].into(),
        _ => [198, 51, 100, chance.byte()].into(),
    };
    let mut visit = Visit::new(time.expect("a time"), ip);
    let mut text = |ordinary: &[&str]| match chance.below(20) {
        0 => None,
        1 => Text::owned(&chance.one(&HOSTILE).repeat(1 + chance.below(3) as usize)),
        2 => Text::owned(&chance.one(&HOSTILE).repeat(700)),
        _ => Text::owned(chance.one(ordinary)),
    };
    visit.referrer = text(&["https://example.com/", "https://example.com/a?b=c#d", "http://news.example/"]);
    visit.user_agent =
        text(&["curl/8.5.0", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"]);
    visit.host = text(&["px.example.com", "px.example.com:8080"]);
    visit.query = text(&["utm_campaign=autumn&utm_source=mail", "x=1"]);
    visit.accept_language = text(&["en", "cs-CZ,cs;q=0.9"]);
    visit.path = Text::new("/track");
    visit.method = Text::new(if chance.below(5) == 0 { "POST" } else { "GET" });
    visit.scheme = [None, Text::new("https"), Text::new("http")][chance.below(3) as usize].clone();
    (visit.dnt, visit.gpc) = (chance.below(3) == 0, chance.below(3) == 0);
    visit
}

/// As a file of this format.
pub fn lines_as(format: LineFormat, visits: &[(Visit<'static>, Option<(Uuid, u64)>)]) -> Vec<u8> {
    let mut lines = Vec::new();
    for (visit, number) in visits {
        format.write(Numbered { visit, number: *number }, &mut lines);
    }
    lines
}
