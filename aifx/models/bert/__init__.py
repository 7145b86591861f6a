"""Encoders of texts: BERT (Devlin et al. 2018), as sentence encoders use it. aifx embeds with them and trains none."""

from aifx.models import Family
from aifx.models.bert.section import BertSection

FAMILY = Family("bert", BertSection, "aifx.models.bert.model:make", hub="aifx.models.bert.hub", is_trained=False)
