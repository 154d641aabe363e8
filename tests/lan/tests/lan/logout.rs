//! Users who log out while something is in use, as their desktop's portal is told of it.

use netbus_lan_tests::portal::Session;

use super::scene::{becomes, on_two_hosts};

#[test]
fn a_user_is_asked_before_logging_out_while_something_is_in_use_at_either_end() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.attic.stop()?;
        scene.desk.stop()?;
        let (mut attic, desk) = (Session::of(&mut scene.attic)?, Session::of(&mut scene.desk)?);
        scene.attic.start()?;
        scene.desk.start()?;
        scene.make_noise(4)?;
        scene.publish(&[])?;
        scene
            .desk
            .wait_until("channels", "the channel is offered", |answer| answer["channels"][0]["present"] == true)?;
        attic.wait_for_reasons(&[])?;
        desk.wait_for_reasons(&[])?;

        scene.subscribe(&[])?;
        attic.wait_for_reasons(&["desk uses backup"])?;
        desk.wait_for_reasons(&["attic/backup is used here"])?;

        // A portal that is started anew was told nothing yet.
        attic.restart_portal()?;
        attic.wait_for_reasons(&["desk uses backup"])?;

        scene.desk.kill()?;
        attic.wait_for_reasons(&[])?;
        desk.wait_for_reasons(&[])?;
        scene.desk.start()?;
        becomes(&scene.desk, "active")?;
        attic.wait_for_reasons(&["desk uses backup"])?;

        scene.unsubscribe()?;
        attic.wait_for_reasons(&[])?;
        desk.wait_for_reasons(&[])
    })
}
