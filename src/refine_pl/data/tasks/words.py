"""Short words that keys and values are made of.

No adjective ends in another, and no noun begins with another: so none of the pairs is a part of
another pair, and an output that holds one does not hold a second by accident.
"""

from __future__ import annotations

_ADJECTIVES = """
    able acid aged airy avid bare big blue bold brave brief broad brown busy calm cheap chief
    civic civil clean clear close cold cool crisp cruel curly cute damp dark dear deep dense dim
    dizzy dry dual dull dusty eager early easy elder empty epic equal even exact faint fair false
    fancy far fast few fine firm fit flat fond frail frank free fresh full funny fuzzy giant glad
    good grand grave gray great green grim gross handy happy hard harsh hasty heavy high holy hot
    huge humid ideal inner itchy jolly juicy keen kind large last late lazy light lone long loose
    loud loyal lucky lush main major mild minor misty moist muddy mute naive near neat new nice
    noble noisy north novel numb odd only open oral outer pale past petty plain plump polar poor
    prime proud pure quick quiet rapid rare raw ready real regal rich rigid ripe rough round royal
    rude rusty sad safe same sandy sane scary sharp shiny short shy silky silly sleek slim slow
    small smart smoky smug snowy sober soft solar solid sore sour south spare spicy stale stark
    steep stern still stout sunny super sure sweet swift tall tame tart tasty tense tidy tight
    tiny tired total tough true ugly upper urban usual vague vain valid vast vital vivid warm wary
    weak weary wet white whole wide wild windy wise witty young zesty
"""
ADJECTIVES = tuple(_ADJECTIVES.split())
"""Of three to five letters."""

_NOUNS = """
    acorn actor alarm album amber angel ankle apple apron arena armor arrow aunt badge bagel baker
    banjo barn basil basin beach beard beast belt bench berry bird blade board boat bone book boot
    bread brick bride brush bull cabin cable cake camel canal candy cape cargo cat cave chain
    chair chalk cheek chef chess chest chin cliff cloak clock cloud clown coach coast coin comet
    coral couch cow crab crane crown cup curve daisy deer desk diary doll donut door dove drum
    duck eagle earth elbow elm fence fern ferry field fish flag flame flute foam fork fox frog
    fruit gate ghost glass globe glove goat goose grape grass guest harp hat hawk heart hen herb
    hill hoof horn horse hotel house igloo iron ivory jar jelly jewel judge juice kayak kite knee
    knife koala lake lamb lamp leaf lemon lily lion lock lunar maple mask melon moon moose motor
    mouse mouth mule nail nest nurse oak ocean olive onion orbit otter oven owl palm panda paper
    pasta peach pearl pedal pen phone piano pilot pipe pizza plate plum poem pony puppy queen
    quilt radio raft rain river robin robot roof rope rose ruler sail salad salt scarf seal seed
    shark sheep shelf shell ship shirt shoe silk skirt snail snake soap sock sofa soup spoon squid
    stamp star stone storm stove sugar swan table tiger toast torch tower toy train tray tree
    truck tulip uncle vase vest wagon whale wheat wheel wing wolf wood yacht zebra
"""
NOUNS = tuple(_NOUNS.split())
"""Of three to five letters."""
