// Pages that stay as things are. The server's events say that something changed; what it is now the page itself says, asked for anew, so that words
// and pictures are made in one place. Only what differs is exchanged: who is reading or typing is left alone.
import { sharpen } from './sharpen';

const EVENTS = '/api/v1/events';
// The first change shows soon; while much changes, a page is asked for no more often than this, in milliseconds.
const SOON = 300;
const NO_SOONER = 3000;

interface StudyEvent {
  uid?: string;
  study_uid?: string | null;
}

export function follow(): void {
  const live = document.querySelector<HTMLElement>('[data-live]');
  if (!live) return;
  const kind = live.dataset.live;
  const own = live.dataset.study;
  const look = throttled(() => refresh(kind));
  const about = (event: MessageEvent<string>) => {
    const { uid, study_uid } = JSON.parse(event.data) as StudyEvent;
    if (!own || own === uid || own === study_uid) look();
  };
  // What came to its end between the page and the first event, or happened while the connection was away, no event tells.
  let missed = live.querySelector('.badge.wait') !== null;
  let events: EventSource | undefined;
  const end = () => {
    events?.close();
    events = undefined;
  };
  // Browsers open few connections to one server: pages that nobody sees leave them to others.
  const listen = () => {
    if (document.hidden) return end();
    if (events) return;
    events = new EventSource(EVENTS);
    events.addEventListener('study', about);
    events.addEventListener('consent', about);
    events.addEventListener('look-again', look);
    events.addEventListener('open', () => {
      if (missed) look();
      missed = true;
    });
  };
  document.addEventListener('visibilitychange', listen);
  addEventListener('pageshow', listen);
  addEventListener('pagehide', end);
  listen();
}

function throttled(work: () => Promise<void>): () => void {
  let last = 0;
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    const begin = () => {
      if (document.hidden) {
        document.addEventListener('visibilitychange', begin, { once: true });
        return;
      }
      waits = false;
      last = Date.now();
      void work();
    };
    setTimeout(begin, Math.max(SOON, last + NO_SOONER - Date.now()));
  };
}

async function refresh(kind: string | undefined): Promise<void> {
  const answer = await fetch(location.href, { headers: { accept: 'text/html' } }).catch(() => undefined);
  // Logged out, or gone: the next click says so.
  if (!answer?.ok || answer.redirected) return;
  const now = new DOMParser().parseFromString(await answer.text(), 'text/html');
  if (kind === 'list') list(now);
  else whole(now);
  const [shown, said] = [document.getElementById('status'), now.getElementById('status')];
  if (shown && said && shown.textContent !== said.textContent) shown.textContent = said.textContent;
}

// Cards that are as they were stay, so that a picture is not loaded twice and whoever is on one stays there.
function list(now: Document): void {
  const [shown, wanted] = [document.getElementById('studies'), now.getElementById('studies')];
  if (!shown || !wanted) return;
  const before = new Map(cards(shown).map(card => [card.dataset.study, card]));
  let at: Element | null = shown.firstElementChild;
  for (const card of cards(wanted)) {
    const known = before.get(card.dataset.study);
    before.delete(card.dataset.study);
    const placed = known && known.dataset.state === card.dataset.state ? known : document.importNode(card, true);
    if (placed === at) {
      at = at.nextElementSibling;
      continue;
    }
    if (known && placed !== known) {
      const focused = known.contains(document.activeElement);
      const next = known === at ? at.nextElementSibling : at;
      exchange(known, placed);
      if (focused) placed.querySelector('a')?.focus();
      if (known === at) {
        at = next;
        continue;
      }
    }
    shown.insertBefore(placed, at);
    if (!known) sharpen(placed);
  }
  for (const gone of before.values()) gone.remove();
  const [pages, wantedPages] = [document.getElementById('pages'), now.getElementById('pages')];
  if (pages && wantedPages && pages.innerHTML !== wantedPages.innerHTML) pages.replaceWith(document.importNode(wantedPages, true));
}

function cards(list: Element): HTMLElement[] {
  return [...list.querySelectorAll<HTMLElement>(':scope > [data-study]')];
}

// Pictures that have come already are not asked for again.
function exchange(shown: HTMLElement, placed: HTMLElement): void {
  const known = [...shown.querySelectorAll<HTMLImageElement>('img.sharp')];
  for (const picture of placed.querySelectorAll<HTMLImageElement>('img.sharp')) {
    const same = known.find(image => image.src === picture.src);
    if (same) picture.replaceWith(same);
  }
  shown.replaceWith(placed);
  sharpen(placed);
}

// A page in columns: a column is exchanged when it differs, unless somebody is busy in it.
function whole(now: Document): void {
  const columns = (page: Document) => [...page.querySelectorAll<HTMLElement>('[data-live] .two > div, .two[data-live] > div')];
  const wanted = columns(now);
  columns(document).forEach((shown, number) => {
    const other = wanted[number];
    const busy = shown.contains(document.activeElement) || shown.querySelector('details[open]');
    if (!other || busy || plain(shown) === plain(other)) return;
    const placed = document.importNode(other, true);
    exchange(shown, placed);
  });
}

// Without the classes that `sharpen` gives.
function plain(column: HTMLElement): string {
  const copy = column.cloneNode(true) as HTMLElement;
  for (const image of copy.querySelectorAll('img')) image.classList.remove('waits', 'here', 'came');
  return copy.innerHTML.replaceAll(' class=""', '');
}
