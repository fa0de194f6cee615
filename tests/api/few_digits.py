"""Digits 0 to 2 of the digits, and of their training rows every second or fourth: enough for networks to be trained."""

import dataclasses

import kernel_distill as kd


def few_digits(every):
    data = kd.load_data("digits")
    train, test = data.y_train < 3, data.y_test < 3
    return dataclasses.replace(
        data,
        x_train=data.x_train[train][::every],
        y_train=data.y_train[train][::every],
        x_test=data.x_test[test],
        y_test=data.y_test[test],
        class_names=("0", "1", "2"),
    )
