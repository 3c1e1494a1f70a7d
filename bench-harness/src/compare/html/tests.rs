//! The page is well-formed as XML is (every element closed, every attribute quoted, nothing that must
//! be escaped left bare), asks for nothing from the network, and a browser draws it.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::bulk::summary::tests::{group as bulk_group, row as bulk_row};
use super::super::model::{BulkWork, Row};
use super::super::model::{FORMAT, Group, PeerFacts, Skipped};
use super::super::stats::tests::{part, run};
use super::*;

fn report() -> Report {
    let mut one =
        part(&[("towline", &[1e5, 2e5, 3e5]), ("towline-client", &[9e4]), ("redis", &[5e3]), ("<b>&\"", &[1.0])]);
    let facts = PeerFacts {
        title: "Redis".into(),
        version: "7".into(),
        durability: "less than <flushed> & \"so on\"".into(),
        configuration: "some".into(),
        shape: "some".into(),
    };
    one.peers.insert("redis".into(), facts);
    one.skipped.push(Skipped { peer: "nats".into(), why: "not installed".into() });
    let more = Group { outstanding: 256, ..one.groups[0].clone() };
    let mut local = Group { scope: Scope::Local, record_bytes: 4096, ..one.groups[0].clone() };
    local.rows =
        vec![Row { peer: "sqlite".into(), shape: "1x1".into(), runs: vec![run(10.0)], errors: vec!["once".into()] }];
    local.rows[0].runs[0].disk_moved = true;
    one.groups.extend([more, local]);
    Report { format: FORMAT, parts: vec![one] }
}

/// The elements of a document, or what is wrong with it.
fn elements(text: &str) -> Result<Vec<String>, String> {
    let (mut open, mut all) = (Vec::new(), Vec::new());
    let mut rest = text.strip_prefix("<!DOCTYPE html>").ok_or("no doctype")?;
    while let Some(at) = rest.find('<') {
        bare(&rest[..at])?;
        let end = rest[at..].find('>').ok_or("an element without an end")? + at;
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop().as_deref() != Some(name) {
                return Err(format!("</{name}> closes another element"));
            }
            continue;
        }
        let closed = tag.ends_with('/');
        let tag = tag.trim_end_matches('/');
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        let mut left = attributes.trim();
        while !left.is_empty() {
            let (key, value) = left.split_once("=\"").ok_or(format!("an attribute without a value in <{tag}>"))?;
            if !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
                return Err(format!("an attribute called {key:?}"));
            }
            let (value, more) = value.split_once('"').ok_or(format!("a value without an end in <{tag}>"))?;
            bare(value)?;
            left = more.trim_start();
        }
        all.push(name.to_string());
        if !closed {
            open.push(name.to_string());
        }
    }
    if open.is_empty() { Ok(all) } else { Err(format!("not closed: {open:?}")) }
}

fn bare(text: &str) -> Result<(), String> {
    for (at, _) in text.match_indices('&') {
        if !["&amp;", "&lt;", "&gt;", "&quot;"].iter().any(|e| text[at..].starts_with(e)) {
            return Err(format!("a bare & in {text:?}"));
        }
    }
    if text.contains("NaN") || text.contains("inf,") {
        return Err(format!("no number in {text:?}"));
    }
    Ok(())
}

#[test]
fn the_page_is_well_formed_and_has_a_plot_for_each_question() {
    let page = page(&report());
    let elements = elements(&page).unwrap();
    let count = |name: &str| elements.iter().filter(|e| *e == name).count();
    // Three nodes: throughput, efficiency, cost, latency at two; local, whose device's limit is not known:
    // throughput, cost, latency at one.
    assert_eq!((count("svg"), count("figure")), (8, 8));
    assert_eq!(page.matches("percent of the device").count(), 1);
    assert!(page.contains("<title>towline, 1.00: 20.0</title>"), "2e5 of 1e6 commits");
    assert!(count("polyline") >= 8 && count("circle") > 20);
    assert!(page.contains("&lt;b&gt;&amp;&quot;"), "names are escaped");
    let (spread, mark) = ("title=\"3 us to 10 us\">5 us<", "title=\"the disk changed under 1 of them\">1*<");
    assert!(page.contains(spread) && page.matches(mark).count() == 1);
    assert!(page.contains("Left out: nats: not installed") && page.contains("failed: sqlite 1x1: once"));
}

#[test]
fn bulk_work_has_a_plot_and_a_table_for_each_kind_and_the_page_stays_well_formed() {
    let mut report = report();
    let mut failed = bulk_row("redis", &[], None);
    failed.errors = vec!["it <ended>".into()];
    let stream = vec![bulk_row("towline", &[1500.0, 1400.0], None), bulk_row("<b>&\"", &[3.0], None), failed];
    let catch_up = vec![bulk_row("towline", &[0.0], Some(0.1)), bulk_row("postgres", &[250.0], Some(1.5))];
    report.parts[0].bulk = vec![bulk_group(BulkWork::Stream, stream), bulk_group(BulkWork::CatchUp, catch_up)];
    let page = page(&report);
    let elements = elements(&page).unwrap();
    let count = |name: &str| elements.iter().filter(|e| *e == name).count();
    assert_eq!((count("svg"), count("figure"), count("rect")), (10, 10, 4));
    assert!(page.contains("failed: redis 1x512: it &lt;ended&gt;") && page.contains("on &lt;all&gt; nodes"));
    assert!(page.contains("1024 MiB, a replica that was away catches up, log files written beforehand"));
}

#[test]
fn the_page_asks_for_nothing_and_follows_light_and_dark() {
    let page = page(&report());
    for word in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
        assert!(!page.contains(word), "{word}");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
}

/// The pages in docs/benchmarks.
fn committed() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks").canonicalize().unwrap();
    let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let pages = files.filter(|p| p.extension().is_some_and(|e| e == "html"));
    pages.map(|p| (p.clone(), std::fs::read_to_string(p).unwrap())).collect()
}

#[test]
fn the_committed_pages_are_well_formed_and_ask_for_nothing() {
    for (file, text) in committed() {
        assert_eq!(elements(&text).map(|_| ()), Ok(()), "{}", file.display());
        assert!(!text.contains("http:") && !text.contains("https:") && !text.contains("src="), "{}", file.display());
    }
}

#[test]
fn the_check_for_well_formedness_can_fail() {
    for text in ["<p>", "<p></b>", "<p x></p>", "<p x=\"1></p>", "<p>&</p>", "<p>NaN</p>"] {
        assert!(elements(&format!("<!DOCTYPE html>{text}")).is_err(), "{text}");
    }
}

/// The first of the usual names that is in `PATH`.
fn browser() -> PathBuf {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let folders: Vec<_> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let found = names.iter().flat_map(|name| folders.iter().map(move |f| f.join(name))).find(|p| p.is_file());
    found.expect("chromium is not installed (apt-get install chromium)")
}

/// Lets a browser draw a file without a complaint, with as many plots as it should have.
fn draw(dir: &Path, file: &Path, plots: usize) {
    let browser = |args: &[&str]| {
        let mut command = Command::new(browser());
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars"]);
        command.arg(format!("--user-data-dir={}", dir.join("profile").display()));
        let out = command.args(args).arg(format!("file://{}", file.display())).output().expect("the browser starts");
        assert!(out.status.success(), "{}", file.display());
        let log = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!log.contains("CONSOLE"), "{}: {log}", file.display());
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let dom = browser(&["--dump-dom"]);
    assert_eq!(dom.matches("<svg").count(), plots, "{}", file.display());
    assert!(dom.contains("</html>"));
    let shot = dir.join("page.png");
    browser(&["--window-size=1200,3000", &format!("--screenshot={}", shot.display())]);
    assert!(std::fs::metadata(&shot).unwrap().len() > 20_000, "a picture with something on it: {}", file.display());
    std::fs::remove_file(shot).unwrap();
}

/// `cargo test -p towline-bench browser -- --ignored`; Debian: apt-get install chromium. `.ci/run` does it where
/// a browser is installed.
#[test]
#[ignore = "needs chromium"]
fn a_headless_browser_draws_a_new_page_and_the_committed_ones_without_a_complaint() {
    let dir = std::env::temp_dir().join(format!("towline-compare-page-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("page.html");
    std::fs::write(&file, page(&report())).unwrap();
    draw(&dir, &file, 8);
    let committed = committed();
    assert!(!committed.is_empty());
    for (file, text) in committed {
        let plots = text.matches("<svg").count();
        assert!(plots > 0, "{}", file.display());
        draw(&dir, &file, plots);
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
