//! The main job in two windows, one in front of each of two machines.

use std::fs;
use std::path::Path;

use netbus_app_tests::{Display, Notifications, Panel, Window};
use netbus_lan_tests::disk::{Files, Mount, checksums, compare, make_image};
use netbus_lan_tests::{Account, Host, Lan, can_run};

#[test]
fn a_disk_image_is_shared_used_missed_and_given_back_with_the_mouse_alone() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (mut attic, mut desk) = (lan.host("attic", Account::Root)?, lan.host("desk", Account::Root)?);
    let files = Files::make(&attic.folder.join("files"), 1)?;
    let image = attic.folder.join("backup.img");
    make_image(&image, 16, &files.folder)?;
    attic.start()?;
    desk.start()?;
    let (far, near) = (Display::start()?, Display::start()?);
    let panel = Panel::start(&near)?;
    let (told_there, told_here) = (Notifications::start(&far)?, Notifications::start(&near)?);
    // One desktop has a tray, the other does not.
    let (there, here) = (window(&far, &attic)?, window(&near, &desk)?);
    panel.says("Nothing is shared or in use")?;
    pair(&there, &here)?;
    share(&there, &image)?;
    let node = use_it(&here)?;
    told_there.are(&["desk uses backup"])?;
    let mount = Mount::new(&node, &desk.folder.join("mounted"), "loop,ro,noload")?;
    compare(&files.sums, &checksums(&desk.folder.join("mounted"))?)?;
    mount.unmount()?;
    lose_and_regain_the_link(&lan, &attic, &here, &panel, &told_here)?;
    give_it_back(&there, &here, &node)?;
    give_it_back_from_the_tray(&here, &panel)?;
    forget(&there, &here)?;
    lose_and_regain_the_daemon(&mut desk, &here, &panel)?;
    panel.choose(&["Quit"])?;
    panel.is_empty()
}

fn window(display: &Display, host: &Host) -> anyhow::Result<Window> {
    let socket = host.state_dir().join("control.sock");
    let window = Window::open(display, &host.name, &[("NETBUS_SOCKET", &socket)])?;
    window.shows(&format!("This machine is called {}", host.name))?;
    Ok(window)
}

fn pair(there: &Window, here: &Window) -> anyhow::Result<()> {
    here.shows("attic")?;
    there.press("Show a code")?;
    let code = there.text_of("//dialog//*[@class='code']/span")?;
    here.press("Pair with attic")?;
    here.fill("code", &code)?;
    here.press("Pair")?;
    here.shows("Paired with attic")?;
    there.shows("Paired with desk")?;
    for (window, peer) in [(there, "desk"), (here, "attic")] {
        window.find(&format!("//*[@data-peer='{peer}']//*[text()='Connected']"))?;
    }
    Ok(())
}

fn share(there: &Window, image: &Path) -> anyhow::Result<()> {
    there.press("Share a disk image…")?;
    there.fill("path", &image.to_string_lossy())?;
    there.fill("name", "backup")?;
    there.press("Share")?;
    there.shows("backup is shared")?;
    there.shows("Ready. Nobody uses it: safe to unplug")
}

/// Uses the channel; gives the path of its node.
fn use_it(here: &Window) -> anyhow::Result<String> {
    here.press("Use backup")?;
    here.find("//*[@data-channel='attic/backup' and @data-state='active']")?;
    here.text_of("//*[@data-channel='attic/backup']//code")
}

fn lose_and_regain_the_link(
    lan: &Lan,
    attic: &Host,
    here: &Window,
    panel: &Panel,
    told: &Notifications,
) -> anyhow::Result<()> {
    told.are(&[])?;
    panel.says("In use here")?;
    lan.cable(attic, false)?;
    here.shows("Waits for attic")?;
    panel.says("Waits for another machine")?;
    told.are(&["backup waits for attic"])?;
    lan.cable(attic, true)?;
    here.find("//*[@data-channel='attic/backup' and @data-state='active']")?;
    told.are(&["backup works again"])?;
    panel.says("In use here")
}

fn give_it_back(there: &Window, here: &Window, node: &str) -> anyhow::Result<()> {
    there.shows("desk reads")?;
    here.press("Stop using backup")?;
    here.shows("backup is given back")?;
    here.shows("Nothing yet.")?;
    assert!(fs::metadata(node).is_err(), "{node} is still there");
    there.shows("Ready. Nobody uses it: safe to unplug")
}

fn give_it_back_from_the_tray(here: &Window, panel: &Panel) -> anyhow::Result<()> {
    use_it(here)?;
    panel.choose(&["backup", "Stop"])?;
    here.shows("Nothing yet.")
}

fn forget(there: &Window, here: &Window) -> anyhow::Result<()> {
    here.press("Forget attic")?;
    here.press("Cancel")?;
    here.press("Forget attic")?;
    here.press("Forget")?;
    here.shows("attic is forgotten")?;
    here.find("//*[@data-peer='attic']//*[text()='Not paired']")?;
    // The other machine still trusts this one, but is not let in any more.
    there.find("//*[@data-peer='desk' and not(.//*[text()='Connected'])]").map(drop)
}

fn lose_and_regain_the_daemon(desk: &mut Host, here: &Window, panel: &Panel) -> anyhow::Result<()> {
    desk.kill()?;
    here.shows("Netbus is not running")?;
    panel.says("Something needs you")?;
    desk.start()?;
    here.shows("This machine is called desk")?;
    panel.says("Nothing is shared or in use")
}
