//! The main job by itself: real components behind the balancer, under an open-loop load, killed, healed and swapped live.
//! Everything goes through the same doors that users have: the admin socket and HTTP. What the clients saw decides the exit
//! code.

mod table;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, Uri};

use crate::cli::client::Client;
use crate::daemon::Daemon;
use crate::load::{Load, Seen, Shot};
use crate::model::views::{DeployAnswer, DeployRequest, RolloutView, ServiceStatus};
use table::Row;

/// Requests per second of the load that must not lose any.
const RATE: u32 = 300;
/// Swaps of `version` between v1 and v2.
const SWAPS: u32 = 6;
/// The bound of every wait.
const BOUND: Duration = Duration::from_secs(30);

macro_rules! guest {
    ($name:literal) => {
        (
            $name,
            include_bytes!(concat!("../../../modules/prebuilt/", $name, ".wasm")),
        )
    };
}

type Module = (&'static str, &'static [u8]);

const HELLO: Module = guest!("hello");
const V1: Module = guest!("version-v1");
const V2: Module = guest!("version-v2");
const BROKEN: Module = guest!("version-broken");
const CRASH: Module = guest!("crash");
const SPIN: Module = guest!("spin");
const GREEDY: Module = guest!("greedy");

/// What went wrong, in one sentence.
pub type Fault = String;

/// Runs the demo against a daemon that serves nothing yet; `say` gets each line of the story. Ends with the clients' table,
/// and an error if any request that should have succeeded did not.
pub async fn run(daemon: &Daemon, seconds: u64, say: &mut dyn FnMut(&str)) -> Result<(), Fault> {
    let demo = Demo::connect(daemon).await?;
    let mut rows = Vec::new();
    demo.set_up(say).await?;
    let phase = Duration::from_secs(seconds.max(3)) / 3;
    rows.push(demo.quiet(phase, say).await?);
    rows.push(demo.while_guests_die(say).await?);
    rows.push(demo.swaps(phase, say).await?);
    rows.push(demo.broken_release(say).await?);
    say("");
    for line in table::lines(&rows) {
        say(&line);
    }
    let lost: u64 = rows.iter().map(|r| r.seen.lost).sum();
    let sent: u64 = rows.iter().map(|r| r.seen.sent).sum();
    for row in &rows {
        for example in &row.seen.examples {
            say(&format!("lost in `{}`: {example}", row.what));
        }
    }
    say("");
    if lost > 0 {
        return Err(format!("{lost} of {sent} requests that should have succeeded failed"));
    }
    say(&format!("{sent} requests, 0 lost"));
    Ok(())
}

struct Demo {
    client: Client,
    base: String,
}

impl Demo {
    async fn connect(daemon: &Daemon) -> Result<Self, Fault> {
        let client = Client::at_socket(&daemon.socket);
        let address = daemon.http.first().ok_or("the daemon listens nowhere")?;
        Ok(Self {
            client,
            base: format!("http://{address}"),
        })
    }

    async fn set_up(&self, say: &mut dyn FnMut(&str)) -> Result<(), Fault> {
        say("deploying five services, each from a few lines of TOML:");
        for (name, module, more) in [
            ("hello", HELLO, "replicas = 3"),
            ("version", V1, "replicas = 3\n[rollout]\nmin_healthy_time = \"200ms\""),
            ("crash", CRASH, "replicas = 2"),
            (
                "spin",
                SPIN,
                "[limits]\ncpu_time = \"100ms\"\n[probes.startup]\npath = \"/?ms=1\"",
            ),
            ("greedy", GREEDY, "[limits]\nmemory = \"16MiB\""),
        ] {
            let revision = self.deploy(name, module, more).await?;
            let state = self.settled(name, revision).await?;
            say(&format!("  {name:<8} revision {revision}  {state}"));
        }
        Ok(())
    }

    async fn quiet(&self, phase: Duration, say: &mut dyn FnMut(&str)) -> Result<Row, Fault> {
        say(&format!(
            "load: {RATE} requests a second, sent on time whether or not earlier ones are back"
        ));
        let load = Load::start(self.good_shots(), RATE);
        tokio::time::sleep(phase).await;
        Ok(Row::of("steady", load.finish().await))
    }

    /// Guests die by trap, by endless loop and by memory, replicas die of too many traps and are healed, while others serve.
    async fn while_guests_die(&self, say: &mut dyn FnMut(&str)) -> Result<Row, Fault> {
        say("killing guests under load: by trap, by endless loop, by memory");
        let load = Load::start(self.good_shots(), RATE);
        let before = self.status("crash").await?;
        let attacks = [("crash", "/trap", 40), ("spin", "/", 4), ("greedy", "/bomb", 4)];
        for (name, path, times) in attacks {
            for _ in 0..times {
                let status = self.get(name, path).await?;
                if !status.is_server_error() {
                    return Err(format!("{name}{path} answered {status}, expected a 5xx"));
                }
            }
            say(&format!(
                "  {name}: {times} calls killed, each answered with a clean 5xx"
            ));
        }
        let healed = self
            .wait("the crashed replicas serve again", async || {
                let status = self.status("crash").await?;
                let deaths = status.service.restarts > before.service.restarts;
                Ok(deaths && status.service.replicas_serving == 2)
            })
            .await;
        healed?;
        let restarts = self.status("crash").await?.service.restarts;
        say(&format!(
            "  crash: replicas declared dead after 5 traps in a row, healed ({restarts} restarts)"
        ));
        for (name, path) in [("crash", "/"), ("spin", "/?ms=1"), ("greedy", "/?mib=1")] {
            let status = self.get(name, path).await?;
            if status != StatusCode::OK {
                return Err(format!("{name}{path} answered {status} after the attacks"));
            }
        }
        Ok(Row::of("guests dying", load.finish().await))
    }

    async fn swaps(&self, phase: Duration, say: &mut dyn FnMut(&str)) -> Result<Row, Fault> {
        say(&format!(
            "swapping `version` {SWAPS} times under load, half of it on new connections"
        ));
        let load = Load::start(self.version_shots(), RATE);
        for n in 1..=SWAPS {
            let module = if n % 2 == 1 { V2 } else { V1 };
            let revision = self
                .deploy(
                    "version",
                    module,
                    "replicas = 3\n[rollout]\nmin_healthy_time = \"200ms\"",
                )
                .await?;
            let state = self.settled("version", revision).await?;
            say(&format!("  swap {n}: revision {revision} ({})  {state}", module.0));
        }
        tokio::time::sleep(phase / 4).await;
        Ok(Row::of("live swaps", load.finish().await))
    }

    async fn broken_release(&self, say: &mut dyn FnMut(&str)) -> Result<Row, Fault> {
        say("releasing a broken version under load");
        let load = Load::start(self.version_shots(), RATE);
        let more = "replicas = 3\n[probes.startup]\npath = \"/\"\ninterval = \"50ms\"\nfailures = 3";
        let revision = self.deploy("version", BROKEN, more).await?;
        let rollout = self.rollout_end("version", revision).await?;
        if rollout.state != "refused" {
            return Err(format!("the broken release ended as `{}`", rollout.state));
        }
        let reason = rollout.reason.unwrap_or_default();
        say(&format!("  revision {revision} refused, the old one serves: {reason}"));
        Ok(Row::of("broken release", load.finish().await))
    }

    fn good_shots(&self) -> Vec<Shot> {
        let hello = |_: StatusCode, body: &[u8]| body == b"hello from narae\n";
        let hello = move |status: StatusCode, body: &[u8]| status == StatusCode::OK && hello(status, body);
        let mut shots = self.version_shots();
        shots.push(self.shot("hello", "/").expecting(hello));
        shots.push(self.shot("hello", "/").on_new_connection().expecting(hello));
        shots
    }

    /// v1 or v2 are both right while they are swapped; anything else is not.
    fn version_shots(&self) -> Vec<Shot> {
        let either = |status: StatusCode, body: &[u8]| status == StatusCode::OK && (body == b"v1\n" || body == b"v2\n");
        let mut upload = self.shot("version", "/").expecting(either);
        upload.method = Method::POST;
        upload.body = Bytes::from(vec![b'x'; 64 << 10]);
        vec![
            self.shot("version", "/").expecting(either),
            self.shot("version", "/").on_new_connection().expecting(either),
            upload.clone(),
            upload.on_new_connection(),
        ]
    }

    fn shot(&self, service: &str, path: &str) -> Shot {
        let url: Uri = format!("{}{path}", self.base)
            .parse()
            .expect("an address and a constant path make a URI");
        Shot {
            host: Some(format!("{service}.demo")),
            ..Shot::get(url)
        }
    }

    async fn get(&self, service: &str, path: &str) -> Result<StatusCode, Fault> {
        let seen = Arc::new(std::sync::Mutex::new(None));
        let keep = Arc::clone(&seen);
        let shot = self
            .shot(service, path)
            .on_new_connection()
            .expecting(move |status, _| {
                *keep.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(status);
                true
            });
        let result: Seen = crate::load::once(shot).await;
        let status = *seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        status.ok_or_else(|| format!("{service}{path} got no answer: {}", result.examples.join("; ")))
    }

    async fn deploy(&self, name: &str, (file, bytes): Module, more: &str) -> Result<u64, Fault> {
        let digest = narae_runtime::Digest::of(bytes).to_string();
        self.client
            .put_bytes(&format!("/v1/modules/{digest}"), Bytes::from_static(bytes))
            .await
            .map_err(|e| format!("upload of {file}: {e}"))?;
        let (top, tables) = more.find('[').map_or((more, ""), |at| more.split_at(at));
        let toml = format!(
            "name = \"{name}\"\nmodule = \"{file}.wasm\"\n{top}\n[[route]]\nhost = \"{name}.demo\"\n{tables}\n"
        );
        let request = DeployRequest {
            toml,
            file: Some(format!("{name}.toml")),
            digest,
            if_revision: None,
            dry_run: false,
            cause: None,
            accept: true,
            strategy: None,
        };
        let answer: DeployAnswer = self
            .client
            .json(Method::PUT, &format!("/v1/services/{name}"), Some(&request))
            .await
            .map_err(|e| format!("deploy of {name}: {e}"))?;
        Ok(answer.revision)
    }

    async fn status(&self, name: &str) -> Result<ServiceStatus, Fault> {
        self.client
            .get(&format!("/v1/services/{name}/status"))
            .await
            .map_err(|e| format!("status of {name}: {e}"))
    }

    /// Waits until this revision's rollout ends well, and says how the service is then.
    async fn settled(&self, name: &str, revision: u64) -> Result<String, Fault> {
        let rollout = self.rollout_end(name, revision).await?;
        if rollout.state == "done" {
            let status = self.status(name).await?;
            Ok(format!(
                "{} {}/{}",
                status.service.state, status.service.replicas_serving, status.service.replicas_wanted
            ))
        } else {
            Err(format!(
                "{name} revision {revision} ended as {}: {}",
                rollout.state,
                rollout.reason.unwrap_or_default()
            ))
        }
    }

    async fn rollout_end(&self, name: &str, revision: u64) -> Result<RolloutView, Fault> {
        let mut last = None;
        self.wait(&format!("{name} revision {revision} settles"), async || {
            let rollout: RolloutView = self
                .client
                .get(&format!("/v1/services/{name}/rollout"))
                .await
                .map_err(|e| format!("rollout of {name}: {e}"))?;
            let ended = rollout.to == revision && rollout.state != "running";
            last = Some(rollout);
            Ok(ended)
        })
        .await?;
        last.ok_or_else(|| format!("{name} has no rollout"))
    }

    /// Looks every 20 ms, at most `BOUND`.
    async fn wait(&self, what: &str, mut check: impl AsyncFnMut() -> Result<bool, Fault>) -> Result<(), Fault> {
        let looking = async {
            loop {
                if check().await? {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(BOUND, looking)
            .await
            .unwrap_or_else(|_| Err(format!("not within {BOUND:?}: {what}")))
    }
}

/// A directory for the demo's node; kept when asked.
pub fn data_dir() -> std::io::Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("narae-demo-")
        .tempdir_in(short_temporary_dir())
}

/// A socket path has 107 bytes: a long TMPDIR would not leave room for its name.
fn short_temporary_dir() -> std::path::PathBuf {
    let usual = std::env::temp_dir();
    if usual.as_os_str().len() < 60 {
        usual
    } else {
        Path::new("/tmp").to_owned()
    }
}
