import { afterEach, beforeEach, vi } from "vitest";
import { bus } from "../src/bus.svelte";
import { speak } from "../src/words/words.svelte";

// jsdom draws nothing, so its dialogs cannot be opened; what they hold is all that is looked at here.
HTMLDialogElement.prototype.showModal = function (this: HTMLDialogElement) {
  this.open = true;
};

beforeEach(async () => {
  await speak(["en-GB"]);
});

afterEach(() => {
  bus.view = { engine: "connecting" };
  bus.notices = [];
  vi.useRealTimers();
});
