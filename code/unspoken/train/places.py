"""Who is where, to train fusers on: the text names a place, the question is for its country.

What is asked is not in the text, so that the sender's knowledge of the place has to come through. Places and sentences
are none of the public task `countries`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from unspoken.train.facts import POOLS
from unspoken.train.lesson import Asked, Lesson

COUNTRIES = {
    "France": "the Eiffel Tower|the Louvre|the port of Marseille|Lyon Cathedral|the Gare de Lille|the Pont du Gard|"
    "the Avenue Montaigne",
    "Italy": "the Trevi Fountain|the Uffizi|the harbour of Genoa|Piazza Garibaldi|Villa Borghese|the Via Roma|"
    "San Marco in Venice",
    "Germany": "the Brandenburg Gate|Cologne Cathedral|Hamburg Airport|the Schlossplatz|the Marienkirche|"
    "Neuschwanstein|the Bahnhofstrasse",
    "Spain": "the Alhambra|the Prado|the Plaza Mayor|Seville Cathedral|the Puerta del Sol|the Camp Nou|"
    "the Calle de la Luna",
    "United Kingdom": "Tower Bridge|Edinburgh Castle|the Yorkshire Arms|Oxford Street|Cardiff Market|"
    "Windsor Great Park|Leeds Town Hall",
    "United States": "the Empire State Building|the Golden Gate Bridge|Dallas City Hall|the Ohio Statehouse|"
    "the Jefferson County Courthouse|the First National Bank of Omaha|Yellowstone Lodge|the Boise Depot",
    "Japan": "Kyoto Station|the Meiji Shrine|Osaka Castle|Sapporo Brewery|the Yamamoto Bridge|Hakone Onsen",
    "China": "the Forbidden City|the Bund in Shanghai|Shenzhen University|the Nanjing Road|the Great Wall",
    "India": "the Taj Mahal|the Gateway of Mumbai|Howrah Bridge|the Lakshmi Temple|Chennai Central|Jaipur Palace",
    "Egypt": "the Pyramid of Khufu|the Sphinx|Luxor Temple|the bazaar of Cairo|Aswan Dam|the tomb of Ramses",
    "Greece": "the Parthenon|the port of Piraeus|the Agora of Athens|the Temple of Zeus|Mount Olympus",
    "Turkey": "the Hagia Sophia|the Galata Tower|Ankara Castle|Topkapi Palace|the Bosphorus Bridge",
    "Russia": "the Kremlin|the Winter Palace|the Bolshoi Theatre|Nevsky Prospekt|Vladivostok Station",
    "Brazil": "the Maracana|the beach of Copacabana|the port of Santos|Avenida Paulista|the Igreja do Carmo",
    "Mexico": "the Zocalo|the pyramids of Teotihuacan|the port of Veracruz|Guadalajara Cathedral|Chapultepec Park",
    "Canada": "the CN Tower|Niagara Village in Ontario|the port of Vancouver|Quebec Citadel|Calgary Stampede Park",
    "Australia": "the Sydney Opera House|Bondi Beach|Melbourne Town Hall|the Brisbane Hotel|Perth Mint",
    "Sweden": "the Vasa Museum|Gothenburg Opera|Uppsala Castle|the Drottninggatan|Malmo Station",
    "Norway": "Bergen Wharf|the Oslo Opera|Trondheim Cathedral|the Lofoten Inn",
    "Netherlands": "the Rijksmuseum|Rotterdam Harbour|the Prinsengracht|Utrecht Station|the Oude Kerk",
    "Poland": "Wawel Castle|the Old Town of Warsaw|Gdansk Shipyard|the Church of Saint Stanislaus",
    "Portugal": "the Tower of Belem|Porto Cathedral|the Rua Augusta|Lisbon Oceanarium",
    "Argentina": "the Casa Rosada|the Teatro Colon|the tango bars of Buenos Aires|Mendoza Station",
    "Kenya": "Nairobi Market|the port of Mombasa|the Maasai Lodge",
    "South Korea": "Seoul Tower|Busan Harbour|Gyeongbok Palace|Incheon Airport",
    "Ireland": "Trinity College in Dublin|the Cliffs of Moher|Cork Market|the Molly Malone pub",
}
SAID = (
    "{who} is waiting at {where}.", "You find {who} near {where}.", "{who} spends the day at {where}.",
    "{who} has just arrived at {where}.", "Right now {who} stands in front of {where}.", "{who} works at {where}.",
)  # fmt: skip
QUESTIONS = (
    ("In which country is {who}?", "Answer:"),
    ("Which country is {who} in? Answer with the name.", "The country is"),
    ("What is the name of the country {who} is in?", "{who} is in"),
    ("To which country would you have to travel to meet {who}?", "Answer:"),
)
PEOPLE = (1, 1, 2, 3)
"""How many people a text tells of, drawn from these."""


@dataclass(frozen=True)
class Places:
    """Texts of one to three people, each somewhere else."""

    def lesson(self, seed: int, number: int) -> Lesson:
        """Return one text and a question for each of its people, the same for the same seed and number."""
        draw = random.Random(f"places/1/{seed}/{number}")  # noqa: S311 - reproducible, not secret
        people = draw.sample(POOLS["person"], draw.choice(PEOPLE))
        sentences, asked = [], []
        for who, country in zip(people, draw.sample(list(COUNTRIES), len(people)), strict=True):
            where = draw.choice(COUNTRIES[country].split("|"))
            said = draw.choice(SAID).format(who=who, where=where)
            sentences.append(said)
            question, stem = draw.choice(QUESTIONS)
            asked.append(Asked(question.format(who=who), country, stem.format(who=who)))
        return Lesson(" ".join(sentences), tuple(asked))
