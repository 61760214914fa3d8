"""Arms: networks that are trained and compared. What a change here changes is measured anew."""
