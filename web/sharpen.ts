// A picture appears over its blur when all of it has come. Without a script it lies there from the start, and is drawn as it comes.

export function sharpen(within: ParentNode): void {
  for (const image of within.querySelectorAll<HTMLImageElement>('img.sharp')) {
    if (image.complete) {
      image.classList.add('here');
      continue;
    }
    image.classList.add('waits');
    const came = () => {
      image.classList.remove('waits');
      image.classList.add('here', 'came');
    };
    image.addEventListener('load', came, { once: true });
    image.addEventListener('error', came, { once: true });
  }
}
