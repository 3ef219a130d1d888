// Shows what happens while the page is open; the page is whole without it.
"use strict";
const live = document.getElementById("live");
if (live && "EventSource" in window) {
  const list = live.querySelector("ol");
  const say = (text) => {
    const item = document.createElement("li");
    item.textContent = text.slice(0, 400);
    list.prepend(item);
    while (list.children.length > 50) list.lastElementChild.remove();
    live.hidden = false;
  };
  const events = new EventSource(live.dataset.events);
  events.addEventListener("moment", (event) => {
    const { time, service, text } = JSON.parse(event.data);
    say(`${time.slice(11, 19)} UTC ${service}: ${text}`);
  });
  events.addEventListener("lost", (event) => say(`${JSON.parse(event.data).lost} events were missed; reload the page`));
}
