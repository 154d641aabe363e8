// What the window looks like: nothing sticks out at any width, nothing is wrong for a screen reader or for weak eyes.
// With NETBUS_SHOTS=1 the pictures in docs/window are made anew.
import axe from "axe-core";
import { chromium, type Browser, type Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { preview, type PreviewServer } from "vite";
import type { View } from "../../src/generated/api";
import { attic, backup, shared, snapshot, stick, used } from "../scene";

const SHOTS = new URL("../../../docs/window/", import.meta.url).pathname;

const holder = { peer: "attic", write: true, since: "2026-01-01T00:00:00Z", connected: true };
const busy = snapshot({
  devices: [stick, { ...stick, name: "sda", path: "/dev/sda", model: "Samsung SSD 980", removable: false, used_by: ["/", "/home"] }],
  published: [
    { ...shared, state: "in_use", holders: [holder] },
    { ...shared, channel: "films", label: "Films", device: "/home/me/films.img", read_only: true },
  ],
  peers: [
    attic,
    { ...attic, name: "den-with-a-name-that-goes-on-and-on-for-ever", fingerprint: null, paired: false, connected: false },
    { ...attic, name: "loft", fingerprint: "b".repeat(64), present: false, connected: false },
  ],
  channels: [
    backup,
    { ...backup, channel: "dvd", label: "DVD drive", class: "optical", read_only: true, description: "A film" },
    { ...backup, channel: "music", label: "Music player", class: "usb", present: false },
  ],
  subscribed: [
    used,
    {
      ...used,
      channel: "loft/photos",
      label: "photos",
      node: "/run/netbus/loft/photos.img",
      state: "waiting",
      error: "The link to loft is lost.",
    },
  ],
});

interface Scene {
  view: View;
  /** The button that opens a dialog. */
  press?: string;
}
const scenes: Record<string, Scene> = {
  empty: { view: { engine: "running", snapshot: snapshot() } },
  busy: { view: { engine: "running", snapshot: busy } },
  gone: { view: { engine: "gone", reason: "No Netbus daemon runs here. Start one with: netbus daemon", start: null } },
  share: { view: { engine: "running", snapshot: busy }, press: "Share a disk image…" },
  pair: { view: { engine: "running", snapshot: busy }, press: "Show a code" },
  forget: { view: { engine: "running", snapshot: busy }, press: "Forget attic" },
};

let browser: Browser;
let server: PreviewServer;

beforeAll(async () => {
  server = await preview({ preview: { port: 0, host: "127.0.0.1" }, logLevel: "error" });
  browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
});

afterAll(async () => {
  await browser?.close();
  await server?.close();
});

/** Opens the page as the app would, with a stand-in for the app that shows one view. */
async function open(scene: Scene, width: number, scheme: "light" | "dark"): Promise<Page> {
  const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme: scheme, locale: "en-GB" });
  const page = await context.newPage();
  await page.addInitScript((view) => {
    const code = { answer: "code", code: "042137", expires_in_seconds: 120 };
    Object.assign(window, {
      __TAURI_INTERNALS__: {
        transformCallback: () => 1,
        invoke: async (command: string) => (command === "view" ? view : command === "call" ? code : 1),
      },
    });
  }, scene.view);
  await page.goto(server.resolvedUrls?.local[0] ?? "");
  await page.getByRole("heading", { level: 2 }).first().waitFor();
  if (scene.press !== undefined) {
    await page.getByRole("button", { name: scene.press }).click();
    await page.getByRole("dialog").waitFor();
    if (scene.press === "Show a code") await page.getByRole("img", { name: "0 4 2 1 3 7" }).waitFor();
  }
  return page;
}

describe.each(Object.entries(scenes))("%s", (name, scene) => {
  test.each(["light", "dark"] as const)("fits every width in %s and has no violation", async (scheme) => {
    for (const width of [360, 800, 1600]) {
      const page = await open(scene, width, scheme);
      const needed = await page.evaluate(() => document.documentElement.scrollWidth);
      expect(needed, `at ${width} px`).toBeLessThanOrEqual(width);
      const dialog = page.getByRole("dialog");
      if (await dialog.isVisible()) {
        const box = await dialog.boundingBox();
        expect((box?.x ?? -1) >= 0 && (box?.x ?? 0) + (box?.width ?? 0) <= width, `the dialog at ${width} px`).toBe(true);
      }
      await page.addScriptTag({ content: axe.source });
      const { violations } = await page.evaluate(() => (window as unknown as { axe: typeof axe }).axe.run());
      const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(", ")}`);
      expect(found, `at ${width} px`).toEqual([]);
      await page.context().close();
    }
    if (process.env["NETBUS_SHOTS"] !== undefined) {
      const page = await open(scene, name === "pair" ? 360 : 1100, scheme);
      await page.screenshot({ path: `${SHOTS}${name}-${scheme}.png` });
      await page.context().close();
    }
  });
});

test("the keyboard alone opens a dialog, stays in it and comes back", async () => {
  const page = await open({ view: scenes["busy"]!.view }, 1100, "light");
  const focused = (): Promise<string> => page.evaluate(() => document.activeElement?.textContent?.trim() ?? "");
  for (let presses = 0; presses < 60 && (await focused()) !== "Share a disk image…"; presses += 1) {
    await page.keyboard.press("Tab");
  }
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor();
  for (let presses = 0; presses < 20; presses += 1) {
    await page.keyboard.press("Tab");
    const outside = await page.evaluate(
      () => document.activeElement !== document.body && document.activeElement?.closest("dialog") === null,
    );
    expect(outside).toBe(false);
  }
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  expect(await focused()).toBe("Share a disk image…");
  await page.context().close();
});
