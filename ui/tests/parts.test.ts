import { cleanup, fireEvent, render, screen, within } from "@testing-library/svelte";
import { expect, test, vi } from "vitest";
import App from "../src/App.svelte";
import { bus } from "../src/bus.svelte";
import { answering, attic, backup, shared, snapshot, stick, used } from "./scene";

function show(parts: Parameters<typeof snapshot>[0]): void {
  bus.view = { engine: "running", snapshot: snapshot(parts) };
  render(App);
}

const button = (name: string): HTMLElement => screen.getByRole("button", { name });
const press = (name: string): Promise<boolean> => fireEvent.click(button(name));

test("the three parts teach while there is nothing to show", () => {
  show({});
  for (const name of ["This machine", "Around me", "In use"]) screen.getByRole("region", { name });
  screen.getByText(/Start Netbus on another machine/);
  screen.getByText(/as if it were plugged in/);
});

test("a daemon that is gone is told with the reason and a way to start it", async () => {
  const started = vi.fn();
  const { mockIPC } = await import("@tauri-apps/api/mocks");
  mockIPC((command) => started(command));
  bus.view = { engine: "gone", reason: "No Netbus daemon runs here", start: null };
  render(App);
  expect(screen.getAllByRole("alert").at(-1)?.textContent).toContain("No Netbus daemon runs here");
  await press("Start it");
  expect(started).toHaveBeenCalledWith("start_engine");
});

test("a device is shared for reading only, unless somebody says otherwise and has been warned", async () => {
  const calls = answering(() => ({ answer: "published", ...shared }));
  show({ devices: [stick], peers: [attic] });
  await fireEvent.click(screen.getByRole("switch", { name: "Share SanDisk Ultra" }));
  await press("Share");
  expect(calls.at(-1)).toEqual({ verb: "publish", device: "/dev/sdb", name: null, read_only: true, to: ["attic"] });
  await screen.findByText("Ultra is shared");

  await fireEvent.click(screen.getByRole("switch", { name: "Share SanDisk Ultra" }));
  expect(screen.queryByText(/change and delete/)).toBeNull();
  await fireEvent.click(screen.getByLabelText("Read and write"));
  screen.getByText(/change and delete/);
  await press("Share for reading and writing");
  expect(calls.at(-1)).toMatchObject({ verb: "publish", read_only: false });
});

test("what the daemon refuses stays in the dialog, with what to do", async () => {
  answering(() => ({ kind: "in_use", message: "It is mounted at /media. Unmount it first", causes: ["busy"] }));
  show({ devices: [stick], peers: [attic] });
  await fireEvent.click(screen.getByRole("switch", { name: "Share SanDisk Ultra" }));
  await press("Share");
  const dialog = screen.getByRole("dialog");
  expect((await within(dialog).findByRole("alert")).textContent).toBe("It is mounted at /media. Unmount it first. busy");
});

test("a device that somebody uses is taken away only after the daemon's words on the loss", async () => {
  const holder = { peer: "attic", write: true, since: "2026-01-01T00:00:00Z", connected: true };
  const calls = answering((call) => {
    if (call.verb === "unpublish") return { answer: "unpublished", channel: "ultra" };
    if (call.verb === "revoke" && call.confirmed) return { answer: "revoked", channel: "ultra", holders: [holder] };
    return { answer: "would_revoke", channel: "ultra", holders: [holder], loss: "attic writes to it." };
  });
  show({ devices: [stick], peers: [attic], published: [{ ...shared, state: "in_use", holders: [holder] }] });
  screen.getByText("attic reads and writes");
  await fireEvent.click(screen.getByRole("switch", { name: "Share Ultra" }));
  await screen.findByText("attic writes to it.");
  expect(calls.map((call) => call.verb)).toEqual(["revoke"]);
  await press("Take it away");
  await screen.findByText("Ultra is not shared any more");
  expect(calls.map((call) => call.verb)).toEqual(["revoke", "revoke", "unpublish"]);
});

test("a machine is paired with the code that it shows, spaces or not", async () => {
  const calls = answering(() => ({ answer: "paired", peer: "attic", fingerprint: "a".repeat(64) }));
  show({ peers: [{ ...attic, paired: false, connected: false }] });
  await press("Pair with attic");
  await fireEvent.input(screen.getByLabelText("Pairing code"), { target: { value: "042 137" } });
  await press("Pair");
  expect(calls).toEqual([{ verb: "pair", peer: "attic", code: "042137" }]);
  await screen.findByText("Paired with attic");
});

test("a code is shown until another machine has typed it", async () => {
  answering(() => ({ answer: "code", code: "042137", expires_in_seconds: 120 }));
  show({});
  await press("Show a code");
  await screen.findByText("042137");
  screen.getByText(/Good for 1\d\d more seconds/);
  bus.view = { engine: "running", snapshot: snapshot({ peers: [attic] }) };
  await screen.findByText("Paired with attic");
  expect(screen.queryByRole("dialog")).toBeNull();
});

test("a channel is used with one click", async () => {
  const calls = answering(() => ({
    answer: "node",
    node: "/run/netbus/backup.img",
    channel: "attic/backup",
    way: "file",
    read_only: true,
  }));
  show({ peers: [attic], channels: [backup] });
  await press("Just read backup");
  expect(calls[0]).toMatchObject({ verb: "subscribe", target: "attic/backup", read_only: true });
  await screen.findByText("backup is ready");
});

test("what waits for its host is given up only after a question", async () => {
  const calls = answering(() => ({ answer: "unsubscribed", channel: "attic/backup" }));
  show({ subscribed: [{ ...used, state: "waiting", error: "The link to attic is lost." }] });
  screen.getByText(/Waits for attic/);
  await press("Stop using backup");
  expect(calls).toEqual([]);
  await press("Stop now");
  expect(calls).toEqual([{ verb: "unsubscribe", channel: "attic/backup", force: true }]);
});

test("a disk that was carried here takes the place of its host, and goes home again", async () => {
  const calls = answering((call) => {
    if (call.verb === "swap" && call.to === "/dev/sdb") {
      return { answer: "swapped", channel: "attic/backup", device: call.to, pause_milliseconds: 12 };
    }
    return { answer: "swapped", channel: "attic/backup", device: null, pause_milliseconds: 9 };
  });
  const mounted = { ...stick, path: "/dev/sda", used_by: ["/"] };
  show({ devices: [stick, mounted], subscribed: [used] });
  await press("backup: It is plugged in here…");
  expect(screen.getAllByRole("radio").map((radio) => (radio as HTMLInputElement).value)).toEqual(["/dev/sdb"]);
  await fireEvent.click(screen.getByRole("radio"));
  await press("Use this one");
  await screen.findByText("backup goes on with the device here");
  bus.view = { engine: "running", snapshot: snapshot({ subscribed: [{ ...used, local: "/dev/sdb" }] }) };
  await screen.findByText("Served from /dev/sdb of this machine");
  await press("Bring it home: backup to attic");
  await screen.findByText("backup goes back to attic: safe to unplug here");
  expect(calls.map((call) => (call.verb === "swap" ? call.to : call.verb))).toEqual(["/dev/sdb", null]);
});

test("a refusal outside of a dialog is told until it is dismissed", async () => {
  answering(() => ({ kind: "unavailable", message: "attic is away", causes: [] }));
  show({ peers: [attic], channels: [backup] });
  await press("Use backup");
  await screen.findByText("attic is away");
  await press("Dismiss");
  expect(screen.queryByText("attic is away")).toBeNull();
});

test("a disc is played where it is offered and where it is in use, and what is missing is told", async () => {
  const played = vi.fn();
  const { mockIPC } = await import("@tauri-apps/api/mocks");
  mockIPC((command, payload) => {
    played(command, payload);
    throw { kind: "unavailable", message: "Install vlc or mpv", causes: [] };
  });
  const film = { ...backup, channel: "film", label: "Film", class: "optical", read_only: true };
  show({ peers: [attic], channels: [film, backup] });
  expect(screen.queryByRole("button", { name: "Play backup" })).toBeNull();
  await press("Play Film");
  expect(played).toHaveBeenCalledWith("play", { channel: "attic/film" });
  await screen.findByText(/Install vlc or mpv/);
  cleanup();

  const inUse = { ...used, channel: "attic/film", label: "Film", class: "optical", node: "/run/netbus/film.iso" };
  show({ peers: [attic], subscribed: [inUse] });
  await press("Play Film");
  expect(played).toHaveBeenCalledTimes(2);
});
