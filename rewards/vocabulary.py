"""Words of answers: units that do not count, words that change what is said, names of functions and letters.

Plain tables and the two questions asked of them. A number's trailing words count as its unit only if every word is
known or the phrase is a plain noun phrase ("red marbles"); anything else keeps the answer from being read as a number.
"""

from __future__ import annotations

import re


def words(text: str) -> frozenset[str]:
    """The words of a table."""
    return frozenset(text.split())


FUNCTIONS = words(
    """sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth arsinh arcosh artanh ln
    log exp det gcd lcm max min"""
)
# Other spellings of functions and constants; sqrt, cbrt, abs and frac have a grammar of their own.
ALIASES = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "arcsinh": "arsinh", "arccosh": "arcosh", "arctanh": "artanh",
    "tg": "tan", "ctg": "cot", "cosec": "csc", "arctg": "arctan", "arcctg": "arccot",
    "infinity": "infty", "inf": "infty", "oo": "infty",
}  # fmt: skip
GREEK = words(
    """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi
    omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega infty"""
)

_SYMBOLS = words(
    """mm cm dm m km in ft yd mi nm um mg g kg lb lbs oz t ml mL cl dL dl L l s ms min mins h hr hrs sec secs d wk yr
    yrs mph kph kmph kmh rpm bpm psi fps Hz kHz MHz GHz N kN J kJ MJ eV keV MeV GeV W kW MW kWh V mV kV A mA C F K
    Pa kPa MPa bar atm mol mmol M Wb T H cal kcal BTU ppm rad sr deg ha sq cu gal qt pt cc B KB MB GB TB kb bit bits
    byte bytes dB lm lx cd Bq Gy AU ly pc hp ohm ohms amu th st nd rd"""
)
_NOUNS = words(
    """unit units inch inches foot feet yard yards mile miles meter meters metre metres centimeter centimeters
    centimetre centimetres millimeter millimeters kilometer kilometers kilometre kilometres acre acres hectare
    hectares gram grams gramme grammes kilogram kilograms kilo kilos pound pounds ounce ounces ton tons tonne tonnes
    liter liters litre litres milliliter milliliters gallon gallons quart quarts pint pints cup cups tablespoon
    tablespoons teaspoon teaspoons second seconds minute minutes hour hours day days week weeks month months year
    years decade decades century centuries degree degrees radian radians celsius fahrenheit kelvin kelvins newton
    newtons joule joules watt watts volt volts ampere amperes amp amps hertz pascal pascals mole moles coulomb
    coulombs farad farads tesla teslas henry henries becquerel calorie calories knot knots furlong furlongs
    lightyear lightyears person people man men woman women child children student students boy boys girl girls mouse
    mice goose geese fish sheep deer head grade age old point points mark marks digit digits side sides edge edges
    face faces vertex vertices integer integers numbers primes solution solutions way ways game games piece pieces
    apple pencil book tile coin ticket vote meal marble ball card page step turn question cow dog cat car"""
)
CURRENCIES = words(
    """USD EUR GBP CNY RMB INR KRW RUB TRY VND THB JPY CHF CAD AUD HKD SGD NZD Rs rs Re dollar dollars cent cents penny
    pennies euro euros pound pounds quid yen yuan rupee rupees ruble rubles rouble roubles won peso pesos franc
    francs lira nickel nickels dime dimes bucks"""
)
UNITS = _SYMBOLS | _NOUNS | CURRENCIES
_MODIFIERS = words("per square squares cubic sq cu of the a an each total US light")
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}

# English's closed classes, and what else is no unit after a number: "5 or more", "5 if even", "5 is wrong".
_NO_UNIT = words(
    """and or nor but so yet xor if iff unless when whenever where whether while until since because although though as
    than that which who whom whose what how why to from through till between among up down upto into onto at by for
    with without within on off over under above below beyond beside besides about around approximately approx
    roughly nearly almost circa exactly precisely only just even odd not no none never neither either both any all
    every some most least less fewer greater smaller bigger larger more many much several few another other others
    otherwise else instead except excluding including plus minus times divided multiplied added subtracted squared
    cubed doubled tripled halved raised mod modulo remainder factorial root sqrt negative positive percent
    percentage inverse reciprocal is isn are aren was wasn were be been being am does do did has have had can cannot
    could may might must shall should will would maybe perhaps possibly probably likely sometimes always usually
    wrong right left incorrect correct false true invalid valid impossible possible undefined indeterminate nothing
    everything i you he she it we they me him us them my your his its our their this these those here there now then
    therefore hence thus again also too very wait actually sorry hmm assuming given suppose provided let such like
    unlike versus vs halves half thirds third fourths fourth fifths fifth sixths sixth sevenths eighths eighth
    ninths tenths tenth hundredths thousandths millionths quarters dozen dozens score gross pair couple double
    triple twice thrice one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty
    sixty seventy eighty ninety hundred thousand million billion trillion hundreds thousands millions billions
    trillions north south east west northeast northwest southeast southwest pm bc ad bce ce noon midnight clockwise
    counterclockwise anticlockwise first last answer fails works yes equals equal january february march april june
    july august september october november december monday tuesday wednesday thursday friday saturday sunday"""
)
# Words that stay words outside of a text command; shorter ones may be products of symbols (ad - bc).
_BARE = words(
    """or if is to of and but not nor are was for the per any all one two six ten odd yes may how has had can its our
    you too now let sq cu USD EUR GBP CNY RMB INR KRW JPY CHF CAD AUD HKD SGD NZD Rs rs May Jan Feb Mar Apr Jun Jul
    Aug Sep Oct Nov Dec"""
)
# What is a word only after a number and a space, attached to a number, and after the division sign of a unit.
_PERIODS = words("AM PM am pm BC AD BCE CE")
_AFTER_NUMBERS = frozenset(word for word in UNITS if len(word) > 1) | _PERIODS | words("by as than")
_ATTACHED = words("th st nd rd cm mm km kg mg ml mL dm ft mph Hz kHz MHz kJ kW kWh kPa sec min hr hrs lbs AM PM am pm")
_DIVISORS = _ATTACHED | words("mol day hour")
_PLURAL = re.compile(r"[a-z-]{2,}s")


def is_unit(phrase: str, any_noun: bool = False) -> bool:
    """Whether words after a number only say what it counts or measures: "cm", "square units", "red marbles", "days".

    Args:
        phrase: the words.
        any_noun: whether other words count as well, closed classes and words of judgement aside; for texts that can be
            trusted.
    """
    parts = [word.strip(".,") for word in phrase.replace("-", " ").split() if word.strip(".,")]
    unknown = [
        word for word in parts if not (word in UNITS or (word.lower() in UNITS and len(word) > 2) or word in _MODIFIERS)
    ]
    if not unknown:
        return any(word not in _MODIFIERS for word in parts)
    if len(parts) > 4 or any(word.lower() in _NO_UNIT or not word.isalpha() for word in unknown):
        return False
    head = parts[: parts.index("of")] if "of" in parts else parts
    counts = bool(head) and (head[-1] in UNITS or bool(_PLURAL.fullmatch(head[-1])))
    return counts or (any_noun and all(len(word) > 2 for word in unknown))


def is_bare_word(word: str, after_number: bool, spaced: bool, divided: bool = False) -> bool:
    """Whether bare letters are a word rather than a product of symbols.

    Args:
        word: the letters.
        after_number: whether a number stands before them.
        spaced: whether white space does.
        divided: whether a division sign does.
    """
    if (len(word) > 3 and word[1:].islower()) or word in _BARE:
        return True
    if divided:
        return word in _DIVISORS
    return after_number and word in (_AFTER_NUMBERS if spaced else _ATTACHED)
