//! `cargo xtask run`: the main job for real on this one machine, then a daemon for the user, and
//! the window where there is a display.
//!
//! Two engines with nothing in common but the network, *attic* and *desk*, find each other, pair, and desk uses a disk
//! image of attic's as its own. Each step is told before it is done and its effect is checked. Everything of the
//! demonstration lies in one fresh folder, which is gone afterwards.

mod engine;
mod image;
mod node;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use anyhow::{Context, Result, bail};

use self::engine::{Engine, first_free_port};
use self::image::Image;
use self::node::Kind;
use crate::setup::{self, Group};
use crate::steps::Outcome;
use crate::{command, project, ui};

/// How long the engines may take to see each other before they are told where they are.
const DISCOVERY_WAIT: Duration = Duration::from_secs(10);

/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(100);

const LETTER: &str = "Written at desk, kept at attic.\n";
const LETTER_NAME: &str = "letter-from-desk.txt";

/// The verb.
///
/// # Errors
/// A step of the demonstration went wrong, or the daemon does not start.
pub(crate) fn run() -> Result<()> {
    setup::setup(&[Group::Build, Group::Run])?;
    match demonstration()? {
        Outcome::Skipped(reason) => println!("\nThere is no demonstration on this machine: {reason}."),
        Outcome::Passed | Outcome::Tested(_) => println!("\nEverything was compared and is right."),
    }
    leave_a_daemon(&program()?)?;
    if let Err(error) = open_the_window() {
        println!("\nThe window does not open: {error:#}. All of it can be done with the commands above.");
    }
    Ok(())
}

/// Builds the window and opens it, where there is a display to open it on.
fn open_the_window() -> Result<()> {
    let has_display =
        ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| env::var_os(name).is_some_and(|at| !at.is_empty()));
    if cfg!(target_os = "linux") && !has_display {
        return Ok(());
    }
    say("The window");
    setup::setup(&[Group::Ui, Group::Python])?;
    let node = ui::Node::provide()?;
    ui::install_packages(&node)?;
    ui::build_page(&node)?;
    command::run(ui::cargo().args(["build", "--locked"]))?;
    engine::open_beside(&ui::program())?;
    println!("It is open, and goes on when this program ends.");
    Ok(())
}

/// Builds the program and does the main job with two engines and an image.
///
/// # Errors
/// Names the step; the ends of both daemons' logs are printed.
pub(crate) fn demonstration() -> Result<Outcome> {
    command::run(project::cargo().args(["build", "--package", "netbus-engine"]))?;
    if !cfg!(target_os = "linux") {
        return Ok(Outcome::Skipped("a channel becomes a file only on Linux so far".to_owned()));
    }
    let kind = match Kind::possible_here() {
        Ok(kind) => kind,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    let folder = Folder::create()?;
    let program = program()?;
    let port = first_free_port(engine::DEFAULT_PORT + 1)?;
    let mut attic = Engine::new("attic", &program, folder.path(), port);
    let mut desk = Engine::new("desk", &program, folder.path(), first_free_port(port + 1)?);
    let result = tell(&mut attic, &mut desk, kind, folder.path());
    if result.is_err() {
        attic.show_log();
        desk.show_log();
    }
    result.map(|()| Outcome::Passed)
}

fn tell(attic: &mut Engine, desk: &mut Engine, kind: Kind, folder: &Path) -> Result<()> {
    say("1. A disk image with real files, and two machines that have never met: attic has the image, desk wants it.");
    let image = Image::with_files_of(&project::root_dir().join("netbus-engine"), folder.join("backup.img"))?;
    attic.start()?;
    desk.start()?;

    say("2. They find each other on the network.");
    let address = find(attic, desk)?;

    say("3. They pair: attic shows a code, desk types it.");
    let code = attic.call(&["pair", "--show-code", "--no-wait"]).context("Step 3, showing the code")?;
    let peer = address.as_deref().unwrap_or("attic");
    desk.call(&["pair", peer, "--code", &code]).context("Step 3, typing the code")?;

    say("4. attic publishes its disk image, desk subscribes to it.");
    let image_path = image.path().display().to_string();
    attic.call(&["publish", &image_path, "--name", "backup"]).context("Step 4, publishing")?;
    let mut subscribe = vec!["subscribe", "attic/backup", "--as", kind.word()];
    subscribe.extend(address.iter().flat_map(|address| ["--address", address]));
    let printed = desk.call(&subscribe).context("Step 4, subscribing")?;
    println!("       desk has attic's disk as {printed}");
    let node = kind.node(printed, folder.join("fetched.img"));

    say("5. What desk reads through the bus is what attic has, byte for byte and file by file.");
    let fetched = node.fetched().context("Step 5, reading")?;
    image.expect_same_bytes(fetched).context("Step 5, comparing the bytes")?;
    let count = image.expect_same_files(fetched, &folder.join("read")).context("Step 5, comparing the files")?;
    println!("       {count} files are the same");

    say("6. desk writes a file into it and lets go of it.");
    let letter = folder.join(LETTER_NAME);
    fs::write(&letter, LETTER)?;
    image::write_file(fetched, &letter, LETTER_NAME).context("Step 6, writing")?;
    node.make_durable().context("Step 6, making it durable")?;
    desk.call(&["unsubscribe", "attic/backup"]).context("Step 6, unsubscribing")?;

    say("7. At attic the file is there and the file system is clean.");
    image.expect_clean().context("Step 7, checking the file system")?;
    let found = image.read_file(LETTER_NAME, folder).context("Step 7, reading the new file")?;
    if found != LETTER {
        bail!("Step 7: attic's image holds another text in {LETTER_NAME}: {found:?}");
    }

    say("8. Both stop in good order.");
    desk.stop().context("Step 8, stopping desk")?;
    attic.stop().context("Step 8, stopping attic")?;
    Ok(())
}

/// Waits until desk sees attic. Returns attic's address if it has to be told, because multicast does not work here.
fn find(attic: &Engine, desk: &Engine) -> Result<Option<String>> {
    if wait_until(DISCOVERY_WAIT, || desk.sees("attic"))? {
        desk.call(&["peers"])?;
        return Ok(None);
    }
    println!("       This network carries no multicast, so desk is told where attic is.");
    Ok(Some(format!("127.0.0.1:{}", attic.port())))
}

/// Starts a daemon for the user if none answers, and says what to type next.
fn leave_a_daemon(program: &Path) -> Result<()> {
    let shown = program.strip_prefix(env::current_dir()?).unwrap_or(program).display().to_string();
    say("Your own daemon");
    match engine::leave_running(program, &project::target_dir()?.join("netbus-daemon.log"))? {
        Some(id) => println!("It runs now (process {id}) and goes on when this program ends. To stop it: {shown} stop"),
        None => println!("It was running already."),
    }
    println!(
        "\nNext, here:\n\
         \x20   {shown} pair --show-code             lets another machine in\n\
         \x20   {shown} devices                      what this machine could publish\n\
         \x20   {shown} publish DEVICE               a name from there, or a path to an image\n\
         and on the other machine, which runs the same:\n\
         \x20   {shown} peers                        what is on the network\n\
         \x20   {shown} pair PEER CODE               with the code that is shown here\n\
         \x20   {shown} channels                     what is offered to it\n\
         \x20   {shown} subscribe PEER/CHANNEL       prints where the device is\n\
         {shown} --help tells the rest."
    );
    Ok(())
}

fn program() -> Result<PathBuf> {
    Ok(project::target_dir()?.join("debug").join(format!("netbus{}", env::consts::EXE_SUFFIX)))
}

fn say(text: &str) {
    println!("\n{text}");
}

/// Looks at a condition until it holds or the time is over; returns whether it holds.
fn wait_until(limit: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<bool> {
    let start = Instant::now();
    while !holds()? {
        if start.elapsed() > limit {
            return Ok(false);
        }
        thread::sleep(POLL);
    }
    Ok(true)
}

/// A folder of the demonstration's own, removed with all that is in it. It lies in the folder for temporary files
/// because the path of a socket must not be long.
struct Folder(PathBuf);

impl Folder {
    fn create() -> Result<Self> {
        let path = env::temp_dir().join(format!("netbus-demonstration-{}", process::id()));
        // Fails if somebody else made it first.
        fs::create_dir(&path).with_context(|| format!("Cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            println!("{} stays behind: {error}", self.0.display());
        }
    }
}
