"""Who is shown: people's photographs, the prepared dataset, and withdrawal of consent."""
