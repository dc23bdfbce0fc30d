"""What is known of a patient besides the picture: age, sex, and where the lesion is."""

from __future__ import annotations

import pandas as pd

from mlops_project.data.tables import MISSING

COLUMNS = ("age", "sex", "localization")
MIDDLE, SPAN = 50.0, 20.0  # years: about the mean and the deviation of HAM10000's ages
OLDEST = 120  # years; anything else is a code for an unknown age, or a mistake


def known(table: pd.DataFrame) -> bool:
    """Whether the table has any patient's age, sex or site."""
    return bool(cleaned(table).notna().to_numpy().any())


def features(fitted_on: pd.DataFrame, *others: pd.DataFrame) -> list[pd.DataFrame]:
    """What is known, in numbers whose mean over the first table is 0; unknown is 0 as well.

    Args:
        fitted_on: rows of images with the columns of `COLUMNS`; age in years, NaN where unknown.
        others: like it.

    Returns:
        Of each table float64 [N, F], the same columns: age and its square, a column for each sex
        and each site of the first table.
    """
    tables = [cleaned(table) for table in (fitted_on, *others)]
    kinds = {column: sorted(tables[0][column].dropna().unique()) for column in COLUMNS[1:]}
    found = [_numbers(table, kinds) for table in tables]
    return [(numbers - found[0].mean()).fillna(0.0) for numbers in found]


def cleaned(table: pd.DataFrame) -> pd.DataFrame:
    """Age, years, sex and localization, in small letters; NaN or None for all that tells nothing.

    Args:
        table: rows of images with the columns of `COLUMNS`.
    """
    ages = pd.to_numeric(table["age"], errors="coerce")
    told = pd.DataFrame({"age": ages.where(ages.between(0, OLDEST))})
    for column in ("sex", "localization"):
        texts = table[column].astype("string").str.strip().str.lower()
        told[column] = texts.where(~texts.isin(MISSING))
    return told.reset_index(drop=True)


def _numbers(patients: pd.DataFrame, kinds: dict[str, list[str]]) -> pd.DataFrame:
    """A column for the age, its square, and each kind of sex and site; NaN where it is unknown.

    Args:
        patients: of `cleaned`.
        kinds: of sex and localization.
    """
    age = (patients["age"] - MIDDLE) / SPAN
    parts = [pd.DataFrame({"age": age, "age squared": age**2})]
    for column, names in kinds.items():
        texts = patients[column].where(patients[column].isin(names)).astype(object)
        each = pd.get_dummies(
            pd.Categorical(texts, names), prefix=column, prefix_sep=": ", dtype=float
        )
        parts.append(each.where(texts.notna(), axis=0))
    return pd.concat(parts, axis=1)
