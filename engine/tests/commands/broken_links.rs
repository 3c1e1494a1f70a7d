//! Links that are cut, truncated, delayed and corrupted at each byte of the handshake and of the
//! three frames behind it, in both directions: both nodes live on, every broken link is noticed,
//! and what was acknowledged is on both.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crate::fleet::{Fleet, Load, campaigns};
use crate::processes::{Random, folder, seed};
use crate::proxy::{Harm, Outcome, Plan, Proxy, Way};
use towline::wire::frame::{HEADER, PREAMBLE};
use towline::wire::handshake::{HELLO, WELCOME};

const OPTIONS: [&str; 4] = ["--batch-size", "16KiB", "--record-max", "64KiB"];
/// How often a connection may end before it comes to a byte.
const ATTEMPTS: u32 = 20;

/// A kind of harm, for a byte.
type Kind = fn(u64, &mut Random) -> Harm;

const CUT: Kind = |at, _| Harm::Cut { reset: at % 2 == 0 };
const TRUNCATE: Kind = |_, _| Harm::Truncate;
const DELAY: Kind = |_, _| Harm::Delay;
const FLIP: Kind = |_, random| Harm::Flip(1 << random.below(8));

/// Does harm at each byte of one direction. Gives how many bytes that were.
fn at_every_byte(proxy: &Proxy, way: Way, kind: Kind, random: &mut Random) -> u64 {
    for at in 0.. {
        let harm = kind(at, random);
        let mut attempts = 0;
        loop {
            attempts += 1;
            match proxy.harm(Plan { way, harm, at }) {
                Outcome::Done => break,
                Outcome::Beyond => return at,
                Outcome::Early => assert!(attempts < ATTEMPTS, "{way:?} byte {at}: no connection comes so far"),
                Outcome::Wrong(what) => panic!("{way:?} {harm:?} at byte {at}: {what}"),
            }
        }
    }
    unreachable!("frames end")
}

#[test]
fn harm_at_any_byte_of_a_link_is_noticed_and_loses_nothing() {
    campaigns(seed(), |seed| {
        let (began, dir) = (Instant::now(), folder());
        let wanted = Arc::new(AtomicU64::new(1));
        let mut fleet = Fleet::new(dir.path(), "ack_n=1", &OPTIONS);
        let [a, b] = fleet.replicas();
        let proxies = [a, b].map(|n| {
            let proxy = Proxy::start(fleet.addr(), wanted.clone());
            fleet.connect_via(n, proxy.addr.clone());
            proxy
        });
        fleet.start_missing(false);
        let load = Load::on_demand(dir.path(), fleet.addr(), 40, wanted.clone());
        load.await_more(1);
        // Each direction and kind on one of the two links; the next seed has them the other way round.
        let swapped = seed % 2 == 1;
        let of_link = |link: usize| -> [(Way, Kind, &str); 4] {
            if (link == 1) == swapped {
                let (to_r, to_p) = (Way::ToReplica, Way::ToPrimary);
                [(to_p, FLIP, "flip"), (to_r, CUT, "cut"), (to_p, TRUNCATE, "truncate"), (to_r, DELAY, "delay")]
            } else {
                let (to_r, to_p) = (Way::ToReplica, Way::ToPrimary);
                [(to_r, FLIP, "flip"), (to_p, CUT, "cut"), (to_r, TRUNCATE, "truncate"), (to_p, DELAY, "delay")]
            }
        };
        thread::scope(|scope| {
            for (link, proxy) in proxies.iter().enumerate() {
                let harms = of_link(link);
                scope.spawn(move || {
                    let mut random = Random(seed + link as u64);
                    for (way, kind, name) in harms {
                        let began = Instant::now();
                        let bytes = at_every_byte(proxy, way, kind, &mut random);
                        println!("{way:?} {name}: {bytes} bytes, {:?}", began.elapsed());
                        // A handshake and three frames at the least.
                        let handshake = match way {
                            Way::ToPrimary => PREAMBLE.len() + HEADER + HELLO,
                            Way::ToReplica => HEADER + WELCOME,
                        };
                        assert!(bytes >= (handshake + 3 * HEADER) as u64, "{way:?} {name}: only {bytes}");
                    }
                });
            }
        });
        fleet.assert_alive();
        wanted.fetch_add(10, Ordering::Relaxed);
        load.await_more(1);
        let told = load.end();
        fleet.check(&told);
        println!("{} acknowledged records, {:?}", told.acknowledged, began.elapsed());
    });
}
