// What pages do better with a script than without one, and nothing that they need one for: pictures that sharpen, and what changes while somebody looks.
import { sharpen } from './sharpen';
import { follow } from './live';
import { takeLink } from './shared';

sharpen(document);
follow();
takeLink();
